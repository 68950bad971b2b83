"""The mixture of SwiGLUs in MLX."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.moe_swiglu import MoESwiGLU

State = tuple[()]


def init_state(layer: MoESwiGLU, d: int, B: int) -> State:
    """Nothing is kept."""
    return ()


def forward(
    layer: MoESwiGLU,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d). All experts are computed, and those not taken weigh 0."""
    E = layer.experts
    (scores,) = run.ops.linears(x, [p["router.weight"]], [p["router.bias"]])
    gate, up = run.ops.linears(x, [p["w1.weight"], p["w2.weight"]])
    h = run.ops.swiglu(gate, up)
    taken = scores >= mx.sort(mx.stop_gradient(scores), -1)[..., E - layer.active, None]
    if layer.router == "top-k":
        share = mx.softmax(mx.where(taken, scores, -mx.inf), -1)
        weighted = h.reshape(*h.shape[:-1], E, layer.inner) * share[..., None]
        (y,) = run.ops.linears(weighted.flatten(-2), [p["w3.weight"]])
        return y, ()
    share = mx.softmax(mx.where(taken, scores, 0.0), -1)
    (z,) = run.ops.linears(h, [p["w3.weight"]])
    return (z.reshape(*x.shape, E) * share[..., None, :]).sum(-1), ()
