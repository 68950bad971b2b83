"""The linear recurrence with decay in MLX, chunk by chunk; `kernels.py` says what it promises.

With b the sum of log_decay from the start of a chunk, S_0 the state before it and g = b_L:

    h_t = scale ( S_0^T (q_t exp(b_t)) + sum_{j<=t} A_tj v_j )
    A_tj = q_t^T diag(exp(b_t - b_j)) k_j
    S_L = diag(exp(g)) S_0 + sum_j (k_j exp(g - b_j)) v_j^T

Every exponent is a sum of log_decay over positions that follow one another, so at most 0: nothing
overflows, however fast a head forgets. Each is summed up, none is the difference of two longer
sums, which would round at their size. Where every element of a key has its own decay, A is found in
halves: the scores from the later half of a block to its earlier half decay from the end of the
earlier to both sides, (q_t exp(sum up to t)) . (k_j exp(sum after j)); and so on inside the halves.

Sources: Yang et al. 2024, Gated Linear Attention, arXiv:2312.06635; Dao and Gu 2024, Transformers
are SSMs, arXiv:2405.21060.
"""

import mlx.core as mx
from mlx.core import array

MASKED = -1e30
"""Stands for -inf in masked exponents: its gradient is 0, where -inf would give NaN."""


def decay_cell(
    q: array,
    k: array,
    v: array,
    log_decay: array,
    *,
    scale: float,
    chunk_size: int,
    state: array | None = None,
) -> tuple[array, array]:
    """Run the recurrence over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    q, k, v, a = (x.astype(mx.float32).swapaxes(1, 2) for x in (scale * q, k, v, log_decay))
    if state is None:
        state = mx.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]))
    S = q.shape[2]
    if S == 1:
        state = mx.exp(a).swapaxes(-1, -2) * state + k.swapaxes(-1, -2) * v
        return (q @ state).swapaxes(1, 2), state
    L = chunk_length(chunk_size, S)
    q, k, v, a = (to_chunks(x, L) for x in (q, k, v, a))
    b = mx.cumsum(a, -2)
    add = (k * mx.exp(sum_after(a))).swapaxes(-1, -2) @ v
    decay = mx.exp(b[..., -1:, :]).swapaxes(-1, -2)
    states = [state]
    for decay_c, add_c in zip(mx.unstack(decay), mx.unstack(add), strict=True):
        states.append(decay_c * states[-1] + add_c)
    A = (q @ k.swapaxes(-1, -2)) * between(a[..., 0]) if a.shape[-1] == 1 else _scores(q, k, a)
    h = A @ v + (q * mx.exp(b)) @ mx.stack(states[:-1])
    return h.transpose(1, 0, 3, 2, 4).flatten(1, 2)[:, :S], states[-1]


def between(a: array, *, own: bool = True) -> array:
    """Return exp(sum of a after j, up to t) (..., L, L) where j < t, or j <= t if `own`; else 0."""
    L = a.shape[-1]
    sums = mx.cumsum(mx.tril(mx.broadcast_to(a[..., None], (*a.shape, L)), -1), -2)
    return mx.exp(sums + mx.triu(mx.full((L, L), MASKED), 1 if own else 0))


def sum_after(a: array) -> array:
    """Return the sum of a (..., L, D) over the positions after each."""
    return mx.cumsum(a, -2, reverse=True, inclusive=False)


def _scores(q: array, k: array, a: array) -> array:
    """Return A (..., L, L), 0 above the diagonal; q, k and a (..., L, DK)."""
    A = (q * k).sum(-1)[..., None, None]  # (..., blocks, m, m)
    m = 1
    while m < q.shape[-2]:
        a_early, a_late = _halves(a, m)
        k_early, q_late = _halves(k, m)[0], _halves(q, m)[1]
        from_late = q_late * mx.exp(mx.cumsum(a_late, -2))
        across = from_late @ (k_early * mx.exp(sum_after(a_early))).swapaxes(-1, -2)
        early, late = paired(A)
        above = mx.concatenate([early, mx.zeros_like(across)], -1)
        A = mx.concatenate([above, mx.concatenate([across, late], -1)], -2)
        m *= 2
    return A.squeeze(-3)


def _halves(x: array, m: int) -> tuple[array, ...]:
    """Cut x (..., L, D) into blocks of 2 m: their earlier and later halves (..., blocks, m, D)."""
    return mx.unstack(x.reshape(*x.shape[:-2], -1, 2, m, x.shape[-1]), axis=-3)


def paired(A: array) -> tuple[array, ...]:
    """Return the first and the second of every two matrices (..., blocks, m, m)."""
    *batch, _, m, _ = A.shape
    return mx.unstack(A.reshape(*batch, -1, 2, m, m), axis=-3)


def chunk_length(chunk_size: int, S: int) -> int:
    """Return the chunk's length for S positions: no longer than the next power of 2."""
    return int(min(chunk_size, 1 << (S - 1).bit_length()))


def to_chunks(x: array, L: int) -> array:
    """(B, NH, S, D) -> (NC, B, NH, L, D), zeros on the right to whole chunks.

    A position of zeros keeps the state and adds nothing.
    """
    x = mx.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % L), (0, 0)])
    B, NH, S, D = x.shape
    return x.reshape(B, NH, S // L, L, D).transpose(2, 0, 1, 3, 4)
