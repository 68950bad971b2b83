"""The mLSTM cell in MLX in its parallel, chunkwise and recurrent form, plain.

Arguments and results as `Ops.mlstm_cell` in `kernels.py` says; computed in float32. The equations
of all three forms stand in `mlstm_numpy.py`.

The gradient is exact. h depends on the state, not on how it is scaled, so a stabiliser is held
constant wherever it cancels, which leaves no rounding behind; what does depend on it is put back:
eps, and the scale of a state that is given or returned.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517 (recurrent and parallel forms);
Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376 (chunkwise form).
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx.core import array

State = tuple[array, array, array]

MASKED = -1e30
"""Stands for -inf in masked exponents: its gradient is 0, where -inf would give NaN."""

LARGEST = 80.0
"""Exponent of the largest floor: one that overflows makes the same h of 0, and NaN its gradient."""


def mlstm_cell(
    q: array,
    k: array,
    v: array,
    i: array,
    f: array,
    *,
    chunk_size: int,
    eps: float,
    state: Sequence[array] | None = None,
) -> tuple[array, State]:
    """Run the cell over (B, S, NH, ...): one recurrent step where S = 1, else chunk by chunk."""
    if q.shape[1] == 1:
        return recurrent(q, k, v, i, f, eps=eps, state=state)
    return chunkwise(q, k, v, i, f, chunk_size=chunk_size, eps=eps, state=state)


def parallel(q: array, k: array, v: array, i: array, f: array, *, eps: float) -> array:
    """Return h of a whole sequence at once, in time and memory that grow as S^2.

    It has no state. Its stabiliser starts at the first input gate, that of the other forms at m = 0
    before it, so h differs from theirs as far as eps counts.
    """
    q, k, v, i, f = _heads_first(q, k, v, i, f)
    b = mx.cumsum(-mx.logaddexp(-f, 0), -1)
    u = i - b
    r = _running_max(u)
    num, den = _attend(q, k, v, u, mx.stop_gradient(r))
    return _normalise(num, den, b, r, eps).swapaxes(1, 2)


def chunkwise(
    q: array,
    k: array,
    v: array,
    i: array,
    f: array,
    *,
    chunk_size: int,
    eps: float,
    state: Sequence[array] | None = None,
) -> tuple[array, State]:
    """Return h and the last state: chunks in parallel inside, joined by the state between them.

    With b the sum of logsig(f) from the start of a chunk to t, g = b_L, u = i - b and M = b + r:
    r_t = max(m, max_{j<=t} u_j), so that D_tj - M_t = u_j - r_t.
    """
    S = q.shape[1]
    L = min(chunk_size, S)
    C, n, m = _zero_state(q, v) if state is None else state
    q, k, v, i, f = _heads_first(q, k, v, i, f)
    # A position past the end keeps the state and adds nothing.
    pad = -S % L
    q, k, v = (_to_chunks(x, pad, 0.0, L) for x in (q, k, v))  # (NC, B, NH, L, DK or DV)
    i = _to_chunks(i[..., None], pad, MASKED, L)[..., 0]
    lf = _to_chunks(-mx.logaddexp(-f, 0)[..., None], pad, 0.0, L)[..., 0]
    b = mx.cumsum(lf, -1)
    g = b[..., -1]
    u = i - b
    u_max = _running_max(u)

    ms = [m]
    for g_c, u_max_c in zip(mx.unstack(g), mx.unstack(u_max[..., -1]), strict=True):
        ms.append(g_c + mx.maximum(ms[-1], u_max_c))
    r = mx.maximum(mx.stack(ms[:-1])[..., None], u_max)

    # The state before every chunk. Only the m that is given is not held: it scales what is given.
    m_held = mx.stack([m, *(mx.stop_gradient(x) for x in ms[1:])])
    m_before, m_after = m_held[:-1], m_held[1:]
    decay = mx.exp(g + m_before - m_after)
    written = mx.exp(g[..., None] + u - m_after[..., None])[..., None] * k
    Cs, ns = [C], [n]
    C_add = written.swapaxes(-1, -2) @ v
    n_add = written.sum(-2)
    for F_c, C_c, n_c in zip(mx.unstack(decay), mx.unstack(C_add), mx.unstack(n_add), strict=True):
        Cs.append(F_c[..., None, None] * Cs[-1] + C_c)
        ns.append(F_c[..., None] * ns[-1] + n_c)

    # Every output: positions of its own chunk, and the state before the chunk.
    num, den = _attend(q, k, v, u, mx.stop_gradient(r))
    w = mx.exp(m_before[..., None] - mx.stop_gradient(r))
    num = num + w[..., None] * (q @ mx.stack(Cs[:-1]))
    den = den + w * (q @ mx.stack(ns[:-1])[..., None])[..., 0]
    h = _normalise(num, den, b, r, eps)
    h = h.transpose(1, 0, 3, 2, 4).flatten(1, 2)
    return h[:, :S], _rescaled(Cs[-1], ns[-1], ms[-1])


def recurrent(
    q: array,
    k: array,
    v: array,
    i: array,
    f: array,
    *,
    eps: float,
    state: Sequence[array] | None = None,
) -> tuple[array, State]:
    """Return h and the last state, position by position."""
    C, n, m = _zero_state(q, v) if state is None else state
    q, k, v, i, f = _heads_first(q, k, v, i, f)
    lf = -mx.logaddexp(-f, 0)
    m_before = m  # not held, it scales the state that is given
    hs = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t, i_t, lf_t = q[:, :, t], k[:, :, t], v[:, :, t], i[..., t], lf[..., t]
        m = mx.maximum(lf_t + m, i_t)
        m_after = mx.stop_gradient(m)
        decay = mx.exp(lf_t + m_before - m_after)
        write = mx.exp(i_t - m_after)
        C = decay[..., None, None] * C + (write[..., None] * k_t)[..., None] * v_t[..., None, :]
        n = decay[..., None] * n + write[..., None] * k_t
        num = (q_t[..., None, :] @ C)[..., 0, :]
        den = (q_t * n).sum(-1)
        hs.append(_normalise(num, den, 0.0, m, eps))
        m_before = m_after
    return mx.stack(hs, 1), _rescaled(C, n, m)


def _attend(q: array, k: array, v: array, u: array, r: array) -> tuple[array, array]:
    """Numerators (..., S, DV) and denominators (..., S) from the keys up to each position."""
    S = u.shape[-1]
    mask = mx.triu(mx.full((S, S), MASKED), 1)
    A = (q @ k.swapaxes(-1, -2)) * mx.exp(u[..., None, :] - r[..., None] + mask)
    return A @ v, A.sum(-1)


def _normalise(num: array, den: array, b: array | float, r: array, eps: float) -> array:
    """Return h for the stabiliser M = b + r, which all but eps is indifferent to."""
    held = mx.stop_gradient(r)
    floor = mx.exp(mx.minimum(-(b + held), LARGEST))
    N = mx.maximum(mx.abs(den), floor) + eps * mx.exp(r - held)
    return num / N[..., None]


def _rescaled(C: array, n: array, m: array) -> State:
    """Return the state that was computed at m held constant, at the scale of m."""
    scale = mx.exp(mx.stop_gradient(m) - m)
    return scale[..., None, None] * C, scale[..., None] * n, m


def _running_max(u: array) -> array:
    """The largest of u up to each position of the last axis; its gradient goes to that one."""
    held = mx.stop_gradient(u)
    top = mx.cummax(held, -1)
    latest = mx.cummax(mx.where(held == top, mx.arange(u.shape[-1]), 0), -1)
    return mx.take_along_axis(u, latest, -1)


def _zero_state(q: array, v: array) -> State:
    B, _, NH, DK = q.shape
    C = mx.zeros((B, NH, DK, v.shape[-1]))
    return C, mx.zeros((B, NH, DK)), mx.zeros((B, NH))


def _heads_first(
    q: array, k: array, v: array, i: array, f: array
) -> tuple[array, array, array, array, array]:
    """(B, S, NH, ...) -> (B, NH, S, ...) in float32, the queries scaled."""
    q, k, v, i, f = (x.astype(mx.float32).swapaxes(1, 2) for x in (q, k, v, i, f))
    return q * q.shape[-1] ** -0.5, k, v, i, f


def _to_chunks(x: array, pad: int, value: float, L: int) -> array:
    """(B, NH, S, D) -> (NC, B, NH, L, D), padded on the right to whole chunks."""
    if pad:
        x = mx.pad(x, [(0, 0), (0, 0), (0, pad), (0, 0)], constant_values=value)
    B, NH, S, D = x.shape
    return x.reshape(B, NH, S // L, L, D).transpose(2, 0, 1, 3, 4)
