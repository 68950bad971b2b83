"""Hyena in MLX."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.hyena import Hyena
from mlxhog.models.mad.layers.long_filter_mlx import taps

State = tuple[array, array]
"""The last inputs of the short convolution (B, k - 1, 3 I), and every w (B, L, I), float32.

Of a row that has read fewer than L positions, the first are 0.
"""


def init_state(layer: Hyena, d: int, B: int) -> State:
    """Return the state before the first token: zeros, and nothing."""
    inner = layer.expand * d
    return mx.zeros((B, layer.kernel - 1, 3 * inner)), mx.zeros((B, 0, inner))


def forward(
    layer: Hyena,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    S = x.shape[1]
    (u,) = run.ops.linears(x, [p["in_proj.weight"]], [p["in_proj.bias"]])
    u, last = run.ops.causal_conv(
        mx.tile(u, (1, 1, layer.groups)),
        p["conv.weight"],
        p["conv.bias"],
        state=None if state is None else state[0],
        silu=False,
    )
    x0, x1, v = mx.split(u, 3, -1)
    w = v * x1
    all_w = w if state is None else mx.concatenate([state[1], w], 1)
    f = taps(p, all_w.shape[1], cfg.max_length)
    y = x0 * (run.ops.long_conv(all_w, f)[:, -S:] + p["skip"] * w)
    (y,) = run.ops.linears(y, [p["out_proj.weight"]], [p["out_proj.bias"]])
    return y, (last, all_w[:, -cfg.max_length :])
