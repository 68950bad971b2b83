"""Attention of several heads in MLX, with the cache that it goes on from."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mh_attention import MHAttention

State = tuple[array, array, array]
"""Keys and values (B, L, heads, dh) float32, and the number of positions read, (B,) int32.

Keys are already turned. A row that has read fewer than L positions has its keys last.
"""


def init_state(layer: MHAttention, d: int, B: int) -> State:
    """Return the state before the first token: an empty cache."""
    empty = mx.zeros((B, 0, layer.heads // layer.shared, d // layer.heads))
    return empty, empty, mx.zeros(B, mx.int32)


def forward(
    layer: MHAttention,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
    *,
    window: int | None = None,
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position.

    With a `window`, that of the sliding form, the cache holds window + 1 positions at most.
    """
    B, S, d = x.shape
    names = ("q_proj", "k_proj", "v_proj")
    q, k, v = (
        y.reshape(B, S, -1, d // layer.heads)
        for y in run.ops.linears(
            x, [p[f"{name}.weight"] for name in names], [p.get(f"{name}.bias") for name in names]
        )
    )
    if layer.qk_norm:
        q = run.ops.rms_norm(q, p["q_norm.weight"], cfg.norm_eps)
        k = run.ops.rms_norm(k, p["k_norm.weight"], cfg.norm_eps)
    read = None if state is None else state[2]
    if layer.rope:
        q, k = run.ops.rope(q, layer.base, read), run.ops.rope(k, layer.base, read)
    lengths = None
    if state is None:
        read = mx.full((B,), S, mx.int32)
    else:
        k, v = mx.concatenate([state[0], k], 1), mx.concatenate([state[1], v], 1)
        read = state[2] + S
        lengths = mx.minimum(read, k.shape[1])
    keys, values = k, v
    if layer.shared > 1:
        keys, values = (mx.repeat(y, layer.shared, 2) for y in (k, v))
    h = run.ops.attention(q, keys, values, window=window, lengths=lengths)
    (y,) = run.ops.linears(h.reshape(B, S, d), [p["out_proj.weight"]], [p.get("out_proj.bias")])
    if window is not None:
        k, v = k[:, -(window + 1) :], v[:, -(window + 1) :]
    return y, (k, v, read)
