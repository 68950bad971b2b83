"""GEGLU in MLX."""

from collections.abc import Mapping

from mlx.core import array

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
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d)."""
    gate, up = run.ops.linears(x, [p["w1.weight"], p["w2.weight"]])
    (y,) = run.ops.linears(run.ops.glu(gate, up, "gelu"), [p["w3.weight"]])
    return y, ()
