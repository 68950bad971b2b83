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

from mlxhog.models.ops.arrays import Array, Arrays

State = tuple[Array, Array, Array]

MASKED = -1e30
"""Replaces -inf in masked exponents: its gradient is 0; that of -inf would be NaN."""

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
        """Compute one recurrent step if S = 1, else chunks."""
        if x[0].shape[1] == 1:
            return self.mlstm_recurrent(*x, eps=eps, state=state)
        return self.mlstm_chunkwise(*x, chunk_size=chunk_size, eps=eps, state=state)

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
        num, den = self._attend_causally(q, k, v, u, xp.stop_gradient(r))
        return self._normalise(num, den, b, r, eps).swapaxes(1, 2)

    def mlstm_chunkwise(
        self, *x: Array, chunk_size: int, eps: float, state: Sequence[Array] | None
    ) -> tuple[Array, State]:
        """Return h and the last state: chunks in parallel, joined by the state between them.

        With b the sum of logsig(f) from the start of a chunk to t, g = b_L, u = i - b and
        M = b + r: r_t = max(m, max_{j<=t} u_j), so that D_tj - M_t = u_j - r_t.
        """
        xp, (q, _, v, *_) = self.xp, x
        S = q.shape[1]
        L = min(chunk_size, S)
        C, n, m = self.zero_state(q, v) if state is None else state
        q, k, v, i, f = self._heads_first(*x)
        # A position past the end keeps the state and adds nothing.
        q, k, v = (to_chunks(x, L, xp) for x in (q, k, v))  # (NC, B, NH, L, DK or DV)
        i = to_chunks(i[..., None], L, xp, MASKED)[..., 0]
        lf = to_chunks(xp.log_sigmoid(f)[..., None], L, xp)[..., 0]
        b = xp.cumsum(lf, -1)
        g = b[..., -1]
        u = i - b
        u_max = self.running_max(u)

        ms = [m]
        for g_c, u_max_c in zip(xp.unstack(g), xp.unstack(u_max[..., -1]), strict=True):
            ms.append(g_c + xp.maximum(ms[-1], u_max_c))
        r = xp.maximum(xp.stack(ms[:-1])[..., None], u_max)

        # The state before every chunk. Only the first m is not held: it scales the first state.
        m_held = xp.stack([m, *(xp.stop_gradient(x) for x in ms[1:])])
        m_before, m_after = m_held[:-1], m_held[1:]
        decay = xp.exp(g + m_before - m_after)
        written = xp.exp(g[..., None] + u - m_after[..., None])[..., None] * k
        Cs, ns = [C], [n]
        parts = (decay, written.swapaxes(-1, -2) @ v, written.sum(-2))
        for F_c, C_c, n_c in zip(*map(xp.unstack, parts), strict=True):
            Cs.append(F_c[..., None, None] * Cs[-1] + C_c)
            ns.append(F_c[..., None] * ns[-1] + n_c)

        # Every output: positions of its own chunk, and the state before the chunk.
        num, den = self._attend_causally(q, k, v, u, xp.stop_gradient(r))
        w = xp.exp(m_before[..., None] - xp.stop_gradient(r))
        num = num + w[..., None] * (q @ xp.stack(Cs[:-1]))
        den = den + w * (q @ xp.stack(ns[:-1])[..., None])[..., 0]
        h = from_chunks(self._normalise(num, den, b, r, eps), S, xp)
        return h, self._rescaled(Cs[-1], ns[-1], ms[-1])

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
        for t in range(q.shape[2]):
            q_t, k_t, v_t, i_t, lf_t = q[:, :, t], k[:, :, t], v[:, :, t], i[..., t], lf[..., t]
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

    def _attend_causally(
        self, q: Array, k: Array, v: Array, u: Array, r: Array
    ) -> tuple[Array, Array]:
        """Numerators (..., S, DV) and denominators (..., S) from the keys up to each position."""
        xp, S = self.xp, u.shape[-1]
        mask = xp.triu(xp.full((S, S), MASKED, like=u), 1)
        A = (q @ k.swapaxes(-1, -2)) * xp.exp(u[..., None, :] - r[..., None] + mask)
        return A @ v, A.sum(-1)

    def _normalise(self, num: Array, den: Array, b: Array | float, r: Array, eps: float) -> Array:
        """Return h for the stabiliser M = b + r; without eps, h would not depend on M."""
        xp = self.xp
        held = xp.stop_gradient(r)
        floor = xp.exp(xp.minimum(-(b + held), LARGEST))
        N = xp.maximum(xp.abs(den), floor) + eps * xp.exp(r - held)
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
    """(B, NH, S, D) -> (NC, B, NH, L, D), filled up on the right to whole chunks."""
    x = xp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % L), (0, 0)], value)
    B, NH, S, D = x.shape
    return xp.permute(x.reshape(B, NH, S // L, L, D), (2, 0, 1, 3, 4))


def from_chunks(h: Array, S: int, xp: Arrays[Array]) -> Array:
    """(NC, B, NH, L, D) -> (B, S, NH, D), without the padding of the last chunk."""
    return xp.permute(h, (1, 0, 3, 2, 4)).flatten(1, 2)[:, :S]
