"""Hyena of several heads in MLX."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.long_filter_mlx import taps
from mlxhog.models.mad.layers.mh_hyena import MHHyena

State = tuple[array, array, array]
"""The last inputs of the short convolution (B, k - 1, 3 d), and every key and value (B, L, NH, dh),
float32. Of a row that has read fewer than L positions, the first are 0.
"""


def init_state(layer: MHHyena, d: int, B: int) -> State:
    """Return the state before the first token: zeros, and nothing."""
    empty = mx.zeros((B, 0, layer.heads, d // layer.heads))
    return mx.zeros((B, layer.kernel - 1, 3 * d)), empty, empty


def forward(
    layer: MHHyena,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    B, S, d = x.shape
    (u,) = run.ops.linears(x, [p["in_proj.weight"]], [p["in_proj.bias"]])
    u, last = run.ops.causal_conv(
        mx.tile(u, (1, 1, layer.groups)),
        p["conv.weight"],
        p["conv.bias"],
        state=None if state is None else state[0],
        silu=False,
    )
    q, v, k = (y.reshape(B, S, layer.heads, -1) for y in mx.split(u, 3, -1))
    if state is not None:
        k, v = mx.concatenate([state[1], k], 1), mx.concatenate([state[2], v], 1)
    L = k.shape[1]
    # Weight of key j for query t, whose own key is L - S + t.
    f = taps(p, L, cfg.max_length)
    f = mx.concatenate([f[:, :1] + p["skip"][:, None], f[:, 1:]], 1)
    ahead = mx.arange(L - S, L)[:, None] - mx.arange(L)[None, :]
    weights = mx.where(ahead >= 0, f[:, mx.maximum(ahead, 0).flatten()].reshape(-1, S, L), 0.0)
    scores = mx.einsum("bthd,bjhd->bhtj", q, k) * weights
    y = mx.einsum("bhtj,bjhd->bthd", scores, v).reshape(B, S, d)
    (y,) = run.ops.linears(y, [p["out_proj.weight"]], [p["out_proj.bias"]])
    return y, (last, k[:, -cfg.max_length :], v[:, -cfg.max_length :])
