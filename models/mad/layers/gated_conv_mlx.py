"""The gated short convolution in MLX."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.gated_conv import GatedConv

State = tuple[array]
"""The last inputs of the convolution, (B, k - 1, d) float32."""


def init_state(layer: GatedConv, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    return (mx.zeros((B, layer.kernel - 1, d)),)


def forward(
    layer: GatedConv,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    d, w = x.shape[-1], p["in_proj.weight"]
    b, c, v = run.ops.linears(x, [w[:d], w[d : 2 * d], w[2 * d :]])
    taps = p["conv.weight"]
    y, last = run.ops.causal_conv(
        b * v, taps, mx.zeros_like(taps[:, 0, 0]), state=state and state[0], silu=False
    )
    (y,) = run.ops.linears(c * y, [p["out_proj.weight"]])
    return y, (last,)
