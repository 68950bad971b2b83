"""The mLSTM cell in its parallel, chunkwise and recurrent form, plain, over either framework.

Every form takes (q, k, v, i, f) as `Ops.mlstm_cell` in `kernels.py` says; computed in float32. The
equations of all three stand in `mlstm_numpy.py`.

The gradient is exact. h depends on the state, not on its scale, so a stabiliser is treated as a
constant wherever it cancels, which avoids rounding errors. The terms that depend on it are added
separately: eps, and the scale of the first and the last state.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517 (recurrent and parallel forms);
Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376 (chunkwise form).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mlxhog.models.ops.arrays import Array, Arrays

State = tuple[Array, Array, Array]

MASKED = -1e30
"""Replaces -inf in masked exponents: its gradient is 0; that of -inf would be NaN."""

MOST_CHUNKS = 128
"""Chunks whose states are computed by one product, whose work grows with their square."""

LARGEST = 80.0
"""Largest exponent of a floor: an overflow would also give h = 0, but a NaN gradient."""


class MLSTMCell(ABC):
    """The forms of the cell over a framework's array functions."""

    xp: Arrays[Array]

    @abstractmethod
    def running_max(self, u: Array) -> Array:
        """Return the largest of u up to each position of the last axis, which has the gradient."""

    def mlstm_cell(
        self, *x: Array, chunk_size: int, eps: float, state: Sequence[Array] | None
    ) -> tuple[Array, State]:
        """Compute one recurrent step if S = 1, else chunks, at most `MOST_CHUNKS` at once."""
        S, length = x[0].shape[1], chunk_size * MOST_CHUNKS
        if S == 1:
            return self.mlstm_recurrent(*x, eps=eps, state=state)
        if S <= length:
            return self.mlstm_chunkwise(*x, chunk_size=chunk_size, eps=eps, state=state)
        hs = []
        for start in range(0, S, length):
            part = (y[:, start : start + length] for y in x)
            h, state = self.mlstm_chunkwise(*part, chunk_size=chunk_size, eps=eps, state=state)
            hs.append(h)
        assert state is not None
        return self.xp.concatenate(hs, 1), (state[0], state[1], state[2])

    def mlstm_parallel(self, *x: Array, eps: float) -> Array:
        """Return h of a whole sequence at once, in time and memory that grow as S^2.

        It has no state. Its stabiliser starts at the first input gate, that of the other forms at
        m = 0 before it, so h differs from theirs by the effect of eps.
        """
        xp = self.xp
        q, k, v, i, f = self._heads_first(*x)
        b = xp.cumsum(xp.log_sigmoid(f), -1)
        u = i - b
        r = self.running_max(u)
        A = self._weights(q, k, u, xp.stop_gradient(r))
        return self._normalise(A @ v, A.sum(-1), b, r, eps).swapaxes(1, 2)

    def mlstm_chunkwise(
        self, *x: Array, chunk_size: int, eps: float, state: Sequence[Array] | None
    ) -> tuple[Array, State]:
        """Return h and the last state: chunks in parallel, joined by the states between them.

        With b the sum of logsig(f) from the start of a chunk to t, g = b_L, u = i - b and
        M = b + r: r_t = max(m, max_{j<=t} u_j), so that D_tj - M_t = u_j - r_t.
        """
        xp, S, DV = self.xp, x[0].shape[1], x[2].shape[-1]
        L = min(chunk_size, S)
        q, k, v, i, f = self._heads_first(*x)
        # A position past the end keeps the state and adds nothing.
        q, k, v = (to_chunks(x, L, xp) for x in (q, k, v))  # (B, NH, NC, L, DK or DV)
        i, lf = to_chunks(i, L, xp, MASKED), to_chunks(xp.log_sigmoid(f), L, xp)
        b = xp.cumsum(lf, -1)
        g = b[..., -1]
        u = i - b
        u_max = self.running_max(u)
        top = u_max[..., -1]

        # A column of ones after v makes n the last column of C, and the denominator that of h.
        v = xp.pad(v, [(0, 0)] * 4 + [(0, 1)], 1.0)
        C = m = None
        if state is not None:
            C, m = xp.concatenate([state[0], state[1][..., None]], -1), state[2]
        written = xp.exp(u - xp.stop_gradient(top)[..., None])[..., None] * k
        entries = behind(C, written.swapaxes(-1, -2) @ v, xp)
        states, last, ms = self._between_chunks(entries, g, top, m)

        # Every output: positions of its own chunk, and the state before the chunk.
        m_before = ms[..., :-1, None]
        r = xp.maximum(m_before, u_max)
        r_held = xp.stop_gradient(r)
        w = xp.exp(xp.stop_gradient(m_before) - r_held)[..., None]
        both = self._weights(q, k, u, r_held) @ v + w * (q @ states)
        num, den = xp.split(both, [DV], -1)
        h = from_chunks(self._normalise(num, den[..., 0], b, r, eps), S)
        C, n = xp.split(last, [DV], -1)
        return h, self._rescaled(C, n[..., 0], ms[..., -1])

    def _between_chunks(
        self, entries: Array, g: Array, top: Array, m: Array | None
    ) -> tuple[Array, Array, Array]:
        """Return the states before each of NC chunks, the last, and m of all; by one product.

        Entry 0 (B, NH, NC + 1, DK, DV + 1) is the first state, at the scale s_0 = m. Entry j is
        what chunk j writes, at the scale s_j = g_j + top_j. With E_cj = s_j + sum of g after j up
        to c, the state after chunk c has m_c = max_{j<=c} E_cj, and entry j in it the weight
        exp(E_cj - m_c). Only the first m is not held there: it scales the first state.
        """
        xp = self.xp
        kept = sums_after(behind(None, g, xp), xp)
        live, held = (
            kept + behind(m, g + scale, xp)[..., None, :] for scale in (top, xp.stop_gradient(top))
        )
        ms = xp.amax(live, -1)
        weights = xp.exp(held - xp.stop_gradient(ms)[..., None])
        before, after = xp.split(weights, [g.shape[-1]], -2)
        B, NH, _, *sizes = entries.shape
        flat = entries.flatten(-2)
        states = (before @ flat).reshape(B, NH, -1, *sizes)
        return states, (after @ flat).reshape(B, NH, *sizes), ms

    def mlstm_recurrent(
        self, *x: Array, eps: float, state: Sequence[Array] | None
    ) -> tuple[Array, State]:
        """Return h and the last state, position by position."""
        xp, (q, _, v, *_) = self.xp, x
        C, n, m = self.zero_state(q, v) if state is None else state
        q, k, v, i, f = self._heads_first(*x)
        lf = xp.log_sigmoid(f)
        m_before = m  # not held, it scales the first state
        hs = []
        positions = zip(*(xp.unstack(y, 2) for y in (q, k, v, i, lf)), strict=True)
        for q_t, k_t, v_t, i_t, lf_t in positions:
            m = xp.maximum(lf_t + m, i_t)
            m_after = xp.stop_gradient(m)
            decay = xp.exp(lf_t + m_before - m_after)
            write = xp.exp(i_t - m_after)
            C = decay[..., None, None] * C + (write[..., None] * k_t)[..., None] * v_t[..., None, :]
            n = decay[..., None] * n + write[..., None] * k_t
            num = (q_t[..., None, :] @ C)[..., 0, :]
            den = (q_t * n).sum(-1)
            hs.append(self._normalise(num, den, 0.0, m, eps))
            m_before = m_after
        return xp.stack(hs, 1), self._rescaled(C, n, m)

    def _weights(self, q: Array, k: Array, u: Array, r: Array) -> Array:
        """Weights of the values up to each position, (..., L, L)."""
        xp, after = self.xp, later(u.shape[-1], self.xp, u)
        return (q @ k.swapaxes(-1, -2)) * xp.exp(u[..., None, :] - r[..., None] + after)

    def _normalise(self, num: Array, den: Array, b: Array | float, r: Array, eps: float) -> Array:
        """Return h for the stabiliser M = b + r; without eps, h would not depend on M."""
        xp = self.xp
        held = xp.stop_gradient(r)
        floor = xp.exp(xp.minimum(-(b + held), LARGEST))
        N = xp.maximum(xp.abs(den), floor) + eps * (1.0 + (r - held))
        return num / N[..., None]

    def _rescaled(self, C: Array, n: Array, m: Array) -> State:
        """Return a state that was computed with a constant m, as a function of m."""
        scale = self.xp.exp(self.xp.stop_gradient(m) - m)
        return scale[..., None, None] * C, scale[..., None] * n, m

    def zero_state(self, q: Array, v: Array) -> State:
        """Return C, n and m before the first position."""
        B, _, NH, DK = q.shape
        shapes = ((B, NH, DK, v.shape[-1]), (B, NH, DK), (B, NH))
        C, n, m = (self.xp.zeros(shape, like=q) for shape in shapes)
        return C, n, m

    def _heads_first(self, *x: Array) -> tuple[Array, ...]:
        """(B, S, NH, ...) -> (B, NH, S, ...) in float32, the queries, which come first, scaled."""
        q, *others = (self.xp.float32(y).swapaxes(1, 2) for y in x)
        return q * q.shape[-1] ** -0.5, *others


def to_chunks(x: Array, L: int, xp: Arrays[Array], value: float = 0.0) -> Array:
    """(B, NH, S, ...) -> (B, NH, NC, L, ...), filled up on the right to whole chunks."""
    B, NH, S, *D = x.shape
    if S % L:
        x = xp.pad(x, [(0, 0), (0, 0), (0, -S % L), *[(0, 0)] * len(D)], value)
    return x.reshape(B, NH, -1, L, *D)


def behind(first: Array | None, x: Array, xp: Arrays[Array]) -> Array:
    """Return x (B, NH, NC, ...) behind an entry (B, NH, ...), zeros if it is None."""
    if first is None:
        return xp.pad(x, [(0, 0), (0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 3))
    return xp.concatenate([first[:, :, None], x], 2)


def from_chunks(h: Array, S: int) -> Array:
    """(B, NH, NC, L, D) -> (B, S, NH, D), without the padding of the last chunk."""
    return h.flatten(2, 3)[:, :, :S].swapaxes(1, 2)


def sums_after(a: Array, xp: Arrays[Array]) -> Array:
    """Return the sum of a (..., L) after j up to t, (..., L, L); about `MASKED` where j > t.

    Each is a sum of its own: the difference of two longer sums would have their rounding error.
    """
    L = a.shape[-1]
    is_after = xp.from_numpy(np.tri(L, k=-1, dtype=bool), like=a)
    return xp.cumsum(xp.where(is_after, a[..., None], 0.0), -2) + later(L, xp, a)


def later(L: int, xp: Arrays[Array], like: Array) -> Array:
    """Return `MASKED` above the diagonal of (L, L), where a key is later than a query, else 0."""
    return xp.from_numpy(np.triu(np.full((L, L), MASKED, np.float32), 1), like=like)
