"""GEGLU in PyTorch."""

from collections.abc import Mapping

from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.geglu import GEGLU

State = tuple[()]


def init_state(layer: GEGLU, d: int, B: int) -> State:
    """Nothing is kept."""
    return ()


def forward(
    layer: GEGLU,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d)."""
    gate, up = run.ops.linears(x, [p["w1.weight"], p["w2.weight"]])
    (y,) = run.ops.linears(run.ops.glu(gate, up, "gelu"), [p["w3.weight"]])
    return y, ()
