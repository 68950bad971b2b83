"""The cells beside mLSTM in MLX, plain; `kernels.py` says what each promises, in float32.

They are computed as in `recurrences_torch.py`, whose docstring has the equations.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops.reference.mlstm_mlx import MASKED


def slstm_cell(
    i: array,
    f: array,
    z: array,
    o: array,
    R: array,
    b: array,
    *,
    state: Sequence[array] | None = None,
    starts: array | None = None,
) -> tuple[array, tuple[array, array, array, array]]:
    """Run the cell over (B, S, NH, DH), any S, from `state` (h, c, n, m) or from zeros."""
    B, S, NH, DH = i.shape
    pre = mx.stack([x.astype(mx.float32) for x in (i, f, z, o)], 3)
    pre = pre + b.astype(mx.float32).reshape(4, NH, DH).swapaxes(0, 1)
    R_t = R.astype(mx.float32).swapaxes(1, 2)
    if state is None:
        h = mx.zeros((B, NH, DH))
        state = (h, h, h, h)
    h, c, n, m = state
    outputs = []
    for t in range(S):
        if starts is not None:
            first = starts[:, t, None, None] != 0
            h, c, n, m = (mx.where(first, 0.0, x) for x in (h, c, n, m))
        mixed = (h.swapaxes(0, 1) @ R_t).swapaxes(0, 1).reshape(B, NH, 4, DH)
        h, c, n, m = _step(pre[:, t] + mixed, c, n, m)
        outputs.append(h)
    return mx.stack(outputs, 1), (h, c, n, m)


def _step(pre: array, c: array, n: array, m: array) -> tuple[array, array, array, array]:
    """The state after one step; pre (B, NH, 4, DH)."""
    i, f, z, o = (pre[:, :, gate] for gate in range(4))
    lf = m - mx.logaddexp(-f, 0)
    m = mx.where(n == 0, i, mx.maximum(i, lf))
    write = mx.exp(i - m)
    keep = mx.exp(mx.minimum(lf - m, 0.0))
    c = keep * c + write * mx.tanh(z)
    n = keep * n + write
    return mx.sigmoid(o) * c / n, c, n, m


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


def delta_cell(
    q: array,
    k: array,
    v: array,
    log_decay: array,
    beta: array,
    *,
    chunk_size: int,
    state: array | None = None,
) -> tuple[array, array]:
    """Run the rule over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    gates = (log_decay[..., None], beta[..., None])
    q, k, v, a, beta = (x.astype(mx.float32).swapaxes(1, 2) for x in (q, k, v, *gates))
    if state is None:
        state = mx.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]))
    S = q.shape[2]
    L = chunk_length(chunk_size, S)
    q, k, v, a, beta = (to_chunks(x, L) for x in (q, k, v, a, beta))
    b = mx.cumsum(a, -2)
    inverse = unit_inverse(beta * (k @ k.swapaxes(-1, -2)) * between(a[..., 0], own=False))
    own = inverse @ (beta * v)
    seen = inverse @ (beta * mx.exp(b) * k)
    written = (k * mx.exp(sum_after(a))).swapaxes(-1, -2)
    decay = mx.exp(b[..., -1:, :])
    states, us = [state], []
    parts = (mx.unstack(x) for x in (own, seen, written, decay))
    for own_c, seen_c, written_c, decay_c in zip(*parts, strict=True):
        us.append(own_c - seen_c @ states[-1])
        states.append(decay_c * states[-1] + written_c @ us[-1])
    A = (q @ k.swapaxes(-1, -2)) * between(a[..., 0])
    h = A @ mx.stack(us) + (q * mx.exp(b)) @ mx.stack(states[:-1])
    return h.transpose(1, 0, 3, 2, 4).flatten(1, 2)[:, :S], states[-1]


def unit_inverse(M: array) -> array:
    """Return (I + M)^-1 of strictly lower triangular matrices (..., L, L), L a power of 2."""
    L = M.shape[-1]
    X = mx.ones((*M.shape[:-1], 1, 1))  # (..., blocks, m, m) on the diagonal
    m = 1
    while m < L:
        blocks = M.reshape(*M.shape[:-2], -1, 2, m, L // (2 * m), 2, m)
        pairs = blocks[..., :, 1, :, :, 0, :]  # (..., pairs, m, pairs, m)
        across = mx.moveaxis(mx.diagonal(pairs, 0, -4, -2), -1, -3)
        early, late = paired(X)
        below = -(late @ across @ early)
        above = mx.concatenate([early, mx.zeros_like(below)], -1)
        X = mx.concatenate([above, mx.concatenate([below, late], -1)], -2)
        m *= 2
    return X.squeeze(-3)


def selective_scan(
    u: array, dt: array, A: array, Bt: array, Ct: array, *, state: array | None = None
) -> tuple[array, array]:
    """Run the recurrence over u (B, S, C) from `state` (B, C, N) or from zeros."""
    u, dt, A, Bt, Ct = (x.astype(mx.float32) for x in (u, dt, A, Bt, Ct))
    S = u.shape[1]
    a = mx.exp(dt[..., None] * A)
    x = (dt * u)[..., None] * Bt[:, :, None]
    if state is not None:
        x = mx.concatenate([x[:, :1] + a[:, :1] * state[:, None], x[:, 1:]], 1)
    rest = [(0, 0), (0, (1 << (S - 1).bit_length()) - S), (0, 0), (0, 0)]
    states = _scan(mx.pad(a, rest), mx.pad(x, rest))[:, :S]
    return (states @ Ct[..., None])[..., 0], states[:, -1]


def _scan(a: array, x: array) -> array:
    """States after every position of a, x (B, S, C, N) from zeros; S a power of 2."""
    if x.shape[1] == 1:
        return x
    B, S, C, N = x.shape
    a_first, a_second = mx.unstack(a.reshape(B, S // 2, 2, C, N), axis=2)
    x_first, x_second = mx.unstack(x.reshape(B, S // 2, 2, C, N), axis=2)
    second = _scan(a_second * a_first, a_second * x_first + x_second)
    before = mx.pad(second[:, :-1], [(0, 0), (1, 0), (0, 0), (0, 0)])
    return mx.stack([x_first + a_first * before, second], 2).flatten(1, 2)
