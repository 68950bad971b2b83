"""The plain feed-forward layer in MLX."""

from collections.abc import Mapping

from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mlp import MLP

State = tuple[()]


def init_state(layer: MLP, d: int, B: int) -> State:
    """Nothing is kept."""
    return ()


def forward(
    layer: MLP,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d)."""
    (u,) = run.ops.linears(x, [p["w1.weight"]], [p["w1.bias"]])
    u = run.ops.activate(u, "gelu_tanh")
    (y,) = run.ops.linears(u, [p["w2.weight"]], [p["w2.bias"]])
    return y, ()
