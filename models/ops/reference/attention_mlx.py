"""Rotary positions and causal attention in MLX; `kernels.py` says what they promise."""

import mlx.core as mx
from mlx.core import array


def rope(x: array, base: float, offset: array | None = None) -> array:
    """Turn the two halves of every head of x (B, S, NH, DH) against each other."""
    turned = mx.fast.rope(
        x.swapaxes(1, 2),
        x.shape[-1],
        traditional=False,
        base=base,
        scale=1.0,
        offset=0 if offset is None else offset,
    )
    return turned.swapaxes(1, 2)


def attention(
    q: array, k: array, v: array, *, window: int | None = None, lengths: array | None = None
) -> array:
    """Attend from q (B, S, NH, DH) to the last keys up to each position of k, v (B, L, NH, DH)."""
    S, L = q.shape[1], k.shape[1]
    if window is not None and window >= L - 1:
        window = None
    if S == L and lengths is None:
        if window is None:
            return _attend(q, k, v, None)
        if S > 2 * window:
            return _in_blocks(q, k, v, window)
    key = mx.arange(L)
    query = key[L - S :, None]
    seen = key <= query
    if window is not None:
        seen = seen & (key >= query - window)
    if lengths is not None:
        seen = seen & (key >= L - lengths[:, None])[:, None, None]
    return _attend(q, k, v, seen)


def _attend(q: array, k: array, v: array, seen: array | None) -> array:
    """Attend where `seen` (..., S, L); None is causal with as many keys as queries."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    h = mx.fast.scaled_dot_product_attention(
        q, k, v, scale=q.shape[-1] ** -0.5, mask="causal" if seen is None else seen
    )
    return h.swapaxes(1, 2)


def _in_blocks(q: array, k: array, v: array, window: int) -> array:
    """Attend block by block to the own and the one before, in time that grows as S."""
    W = max(window, 1)
    B, S, NH, DH = q.shape
    NC = -(-S // W)
    rest = [(0, 0), (0, NC * W - S), (0, 0), (0, 0)]
    q, k, v = (mx.pad(x, rest).reshape(B, NC, W, NH, DH) for x in (q, k, v))
    before = [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)]
    k, v = (mx.concatenate([mx.pad(x, before)[:, :-1], x], 2) for x in (k, v))
    key = mx.arange(-W, W)
    query = mx.arange(W)[:, None]
    seen = (key <= query) & (key >= query - window)
    in_sequence = (mx.arange(NC) > 0)[:, None, None] | (key >= 0)
    seen = mx.tile(seen & in_sequence, (B, 1, 1))[:, None]
    h = _attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), seen)
    return h.reshape(B, NC * W, NH, DH)[:, :S]
