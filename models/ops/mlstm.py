"""The mLSTM cell, chunkwise and recurrent, over the array functions of any framework, in float32.

The equations are those of `models/layers/xlstm.py`.

The gradient is exact. h depends on the state, not on its scale, so a stabilizer is a constant
wherever it cancels, which avoids rounding errors. The terms that depend on it get its gradient by a
zero-valued carrier (`_stabilizer_carrier`): eps, and the scale of the first and the last state.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517 (recurrent and parallel forms);
Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376 (chunkwise form).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxhog.models.ops.arrays import Array, Arrays

State = tuple[Array, Array, Array]

MASKED = -1e30
"""Stands for -inf in masked exponents: its gradient is 0; that of -inf would be NaN."""

MAX_CHUNKS = 128
"""Chunks per inter-chunk matmul, whose work is quadratic in their number; more are scanned."""

MAX_EXPONENT = 80.0
"""Largest exponent of the denominator's floor; an overflow to inf would have a NaN gradient."""


class MLSTMOps:
    """The mLSTM cell over a framework's array functions: parallel, chunkwise, one step."""

    xp: Arrays
    matmul: Callable[[Array, Array], Array]  # that of `Ops`

    def mlstm_cell(
        self, q: Array, k: Array, v: Array, i: Array, f: Array, *, chunk_size: int, eps: float,
        state: Sequence[Array] | None = None, reset_mask: Array | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        """Run the mLSTM cell over a sequence of any length; one step if S = 1.

        q and k (B, S, NH, DK), v (B, S, NH, DV); i and f (B, S, NH), pre-activations of the input
        and forget gates after any cap, i maybe -inf; `chunk_size` positions are computed in
        parallel; eps is added to the denominator; state C (B, NH, DK, DV), n (B, NH, DK),
        m (B, NH), None is zeros; reset_mask (B, S) bool or uint8, true at the first token of a
        document, where the state is reset to zero.

        Returns:
            h (B, S, NH, DV) and the state after the last position, float32. Gradients are exact,
            including those through m. No finite value of an earlier document, and no gate of it,
            changes a later one.
        """
        x, state = (q, k, v, i, f), initial_state(state)
        S, length = q.shape[1], chunk_size * MAX_CHUNKS
        if S == 1:
            return self.mlstm_recurrent(*x, eps=eps, state=state, reset_mask=reset_mask)
        hs, how = [], dict[str, Any](chunk_size=chunk_size, eps=eps)
        for start in range(0, S, length):
            cut = slice(start, start + length)
            part = x if S <= length else tuple(y[:, cut] for y in x)
            resets = reset_mask if reset_mask is None or S <= length else reset_mask[:, cut]
            h, state = self.mlstm_chunkwise(*part, **how, state=state, reset_mask=resets)
            hs.append(h)
        assert state is not None, "there is a chunk"
        C, n, m = state
        return hs[0] if len(hs) == 1 else self.xp.concatenate(hs, 1), (C, n, m)

    def mlstm_chunkwise(
        self, *x: Array, chunk_size: int, eps: float, state: Sequence[Array] | None,
        reset_mask: Array | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        """Return h and the last state: chunks in parallel, then the states between chunks.

        With b the sum of logsig(f) from the start of a chunk to t, g = b_L, u = i - b and
        M = b + r: r_t = max(m, max_{j<=t} u_j), so that D_tj - M_t = u_j - r_t. With resets, sums
        and maxima are within documents, and m is 0 in those that start in the chunk.
        """
        xp, S, DV = self.xp, x[0].shape[1], x[2].shape[-1]
        L = min(chunk_size, S)
        q, k, v, i, f = self._heads_first(*x)
        lf = xp.log_sigmoid(f)
        # A position past the end keeps the state and adds nothing.
        q, k, v = (to_chunks(x, L, xp) for x in (q, k, v))  # (B, NH, NC, L, DK or DV)
        i, lf = to_chunks(i, L, xp, MASKED), to_chunks(lf, L, xp)
        documents = None if reset_mask is None else Documents(reset_mask, L, xp)
        b = xp.cumsum(lf, -1) if documents is None else documents.sums_in_chunk(lf)
        g = b[..., -1]
        u = i - b
        u_const = xp.stop_gradient(u)
        u_running_max = xp.cummax(u_const, -1) if documents is None else documents.largest(u_const)
        u_max = u_running_max[..., -1]
        to_end = u - xp.maximum(u_max[..., None], MASKED)  # no NaN, where all gates are -inf
        if documents is not None:
            to_end = xp.where(documents.reaches_end, to_end, MASKED)

        # A column of ones after v makes n the last column of C, and the denominator that of h.
        v = xp.pad(v, [(0, 0)] * 4 + [(0, 1)], 1.0)
        C = m = None
        if state is not None:
            C, m = xp.concatenate([state[0], state[1][..., None]], -1), state[2]
        weighted_k = xp.exp(to_end)[..., None] * k
        entries = weighted_k.swapaxes(-1, -2) @ v
        states, last, ms = self._between_chunks(C, entries, g, u_max, m, documents)

        # Outputs: intra-chunk attention, and the state before the chunk.
        m_before = ms[..., :-1, None]
        if documents is None:
            r = xp.maximum(m_before, u_running_max)
            from_state = m_before - r
        else:  # `largest` includes m = 0 of the documents that start here
            r = xp.maximum(xp.where(documents.continues, m_before, MASKED), u_running_max)
            from_state = xp.where(documents.continues, m_before - r, MASKED)
        w = (q.shape[-1] ** -0.5 * xp.exp(from_state))[..., None]
        both = self._weights(q, k, u, r, documents) @ v + w * (q @ states)
        num, den = xp.split(both, [DV], -1)
        carrier = self._stabilizer_carrier(i, lf, u, r, m, documents)
        carrier_r = carrier - (b - xp.stop_gradient(b))
        h = self._normalize(num, den[..., 0], b + r, carrier_r, eps)
        C, n = xp.split(last, [DV], -1)
        state = self._rescale(C, n[..., 0], ms[..., -1] + carrier[..., -1, -1])
        return from_chunks(h, S), state

    def _between_chunks(
        self, C: Array | None, entries: Array, g: Array, u_max: Array, m: Array | None,
        documents: "Documents | None",
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Return the states before each of NC chunks, the last, and m of all, by one matmul.

        Entry j (B, NH, NC, DK, DV + 1) is the contribution of chunk j at scale s_j = g_j + max u_j;
        the first state C is the entry before, at scale m. With E_cj = s_j + sum of g over j < s <=
        c, the state after chunk c has m_c = max_{j<=c} E_cj, and entry j in it the weight
        exp(E_cj - m_c). These m are constants; the first one is not, it scales C.
        """
        xp = self.xp
        g = prepend(None, g, xp)
        E = segsum(g, xp) + g[..., None, :] + prepend(m, u_max, xp)[..., None, :]
        if documents is not None:
            E = xp.where(documents.same_chunks, E, MASKED)
        ms = xp.amax(xp.stop_gradient(E), -1)
        weights = xp.exp(E - ms[..., None])
        if C is not None:
            entries = prepend(C, entries, xp)
        B, NH, count, *sizes = entries.shape
        flat, first = entries.flatten(-2), g.shape[-1] - count
        states = self.matmul(weights[:, :, :-1, first:], flat).reshape(B, NH, -1, *sizes)
        last = self.matmul(weights[:, :, -1:, first:], flat).reshape(B, NH, *sizes)
        return states, last, ms

    def _stabilizer_carrier(
        self, i: Array, lf: Array, u: Array, r: Array, m: Array | None,
        documents: "Documents | None",
    ) -> Array:  # fmt: skip
        """Return zeros that carry the gradient of the stabilizers M_t = max(lf_t + M_{t-1}, i_t).

        M_t is the input gate of the last position where u reached r, or else the first m, plus all
        logsig(f) after it; m is 0 where a document starts. All are (B, NH, NC, L), m (B, NH); None
        is 0.
        """
        xp, shape = self.xp, r.shape
        total = xp.cumsum(lf.flatten(2), -1) if documents is None else documents.sums(lf).flatten(2)
        i, u, r = (x.flatten(2) for x in (i, u, r))
        number = xp.from_numpy(np.arange(1, 1 + i.shape[-1], dtype=np.int32), like=i)
        is_origin, origin = u >= r, i - total
        if documents is not None:
            origin = xp.where(is_origin, origin, 0.0)
            is_origin = is_origin | documents.resets.flatten(2)
        last = xp.stop_gradient(xp.cummax(xp.where(is_origin, number, 0), -1))
        origin = xp.take_along_axis(prepend(m, origin, xp), last, -1)
        M = origin.reshape(shape) + total.reshape(shape)
        return M - xp.stop_gradient(M)

    def mlstm_recurrent(
        self, *x: Array, eps: float, state: Sequence[Array] | None, reset_mask: Array | None = None
    ) -> tuple[Array, State]:
        """Return h and the last state, position by position."""
        xp, (q, _, v, *_) = self.xp, x
        C, n, m = self.zero_state(q, v) if state is None else state
        q, k, v, i, f = self._heads_first(*x)
        q, lf = q * q.shape[-1] ** -0.5, xp.log_sigmoid(f)
        m_before = m  # not a constant: it scales the first state
        hs = []
        positions = zip(*(xp.unstack(y, 2) for y in (q, k, v, i, lf)), strict=True)
        for t, (q_t, k_t, v_t, i_t, lf_t) in enumerate(positions):
            if reset_mask is not None:
                first = reset_mask[:, t, None] != 0
                n, C = xp.where(first[..., None], 0.0, n), xp.where(first[..., None, None], 0.0, C)
                m, m_before = (xp.where(first, 0.0, y) for y in (m, m_before))
            m = xp.maximum(lf_t + m, i_t)
            m_after = xp.stop_gradient(m)
            F = xp.exp(lf_t + m_before - m_after)
            I = xp.exp(i_t - m_after)  # noqa: E741  the paper's letter
            C = F[..., None, None] * C + (I[..., None] * k_t)[..., None] * v_t[..., None, :]
            n = F[..., None] * n + I[..., None] * k_t
            num = (q_t[..., None, :] @ C)[..., 0, :]
            den = (q_t * n).sum(-1)
            hs.append(self._normalize(num, den, m_after, m - m_after, eps))
            m_before = m_after
        return xp.stack(hs, 1), self._rescale(C, n, m)

    def _weights(
        self, q: Array, k: Array, u: Array, r: Array, documents: "Documents | None"
    ) -> Array:
        """Return the intra-chunk weights of the values, (..., L, L)."""
        xp, log_scale = self.xp, -0.5 * math.log(q.shape[-1])
        mask = causal_mask(u.shape[-1], xp, u, log_scale)
        scores, exponents = q @ k.swapaxes(-1, -2), u[..., None, :] - r[..., None] + mask
        if documents is not None:  # a score of another document may have overflowed
            scores = xp.where(documents.same, scores, 0.0)
            exponents = xp.where(documents.same, exponents, MASKED)
        return scores * xp.exp(exponents)

    def _normalize(self, num: Array, den: Array, M: Array, carrier: Array, eps: float) -> Array:
        """Return h for the stabilizer M; `carrier` is 0 and has the gradient of the scale of num.

        Only eps depends on it: num, den and the floor have the same scale.
        """
        xp = self.xp
        floor = xp.exp(xp.minimum(-M, MAX_EXPONENT))
        N = xp.maximum(xp.abs(den), floor) + eps * (1.0 + carrier)
        return num / N[..., None]

    def _rescale(self, C: Array, n: Array, m: Array) -> State:
        """Return the state, computed with a constant m, as a function of m."""
        scale = self.xp.exp(self.xp.stop_gradient(m) - m)
        return scale[..., None, None] * C, scale[..., None] * n, m

    def zero_state(self, q: Array, v: Array) -> State:
        """Return C, n and m before the first position."""
        B, _, NH, DK = q.shape
        shapes = ((B, NH, DK, v.shape[-1]), (B, NH, DK), (B, NH))
        C, n, m = (self.xp.zeros(shape, like=q) for shape in shapes)
        return C, n, m

    def _heads_first(self, *x: Array) -> tuple[Array, ...]:
        """(B, S, NH, ...) -> (B, NH, S, ...)."""
        return tuple(y.swapaxes(1, 2) for y in x)


class Documents:
    """Masks of the positions of chunks that are of one document, and sums within documents.

    A sum within a document is one of its own, not the difference of two: no other document enters
    it or its gradient, not even by a rounding error.
    """

    def __init__(self, reset_mask: Array, L: int, xp: Arrays) -> None:
        """Make the masks of reset_mask (B, S), cut into chunks of L."""
        resets = to_chunks(xp.int32(reset_mask != 0)[:, None], L, xp)
        number = xp.cumsum(resets, -1)  # in its chunk; 0 is the one of the state before the chunk
        chunk = xp.cumsum(xp.int32(number[..., -1] > 0), -1)
        chunk = xp.pad(chunk, [(0, 0), (0, 0), (1, 0)])
        self.xp, self.resets = xp, resets > 0
        self.continues, self.reaches_end = number == 0, number == number[..., -1:]
        self.same = self._causal_same(number)  # (B, 1, NC, L, L)
        self.same_chunks = self._causal_same(chunk)  # (B, 1, NC + 1, NC + 1), states between

    def _causal_same(self, number: Array) -> Array:
        """Return whether column j is of the document of row t and j <= t; number (..., L)."""
        before = np.tri(number.shape[-1], dtype=bool)
        same: Array = number[..., None] == number[..., None, :]
        return same & self.xp.from_numpy(before, like=number)

    def largest(self, u: Array) -> Array:
        """Return the running maximum of u (B, NH, NC, L); at least 0 after a reset."""
        xp = self.xp
        largest = xp.amax(xp.where(self.same, u[..., None, :], MASKED), -1)
        return xp.maximum(largest, xp.where(self.continues, MASKED, 0.0))

    def sums_in_chunk(self, x: Array, *, reverse: bool = False) -> Array:
        """Return the cumulative sums of x (B, NH, NC, L) within chunks, or the reverse ones."""
        same = self.same.swapaxes(-1, -2) if reverse else self.same
        return self.xp.where(same, x[..., None, :], 0.0).sum(-1)

    def sums(self, x: Array, *, reverse: bool = False) -> Array:
        """Return the cumulative sums of x (B, NH, NC, L) over all chunks, or the reverse ones."""
        xp, own = self.xp, self.sums_in_chunk(x, reverse=reverse)
        inside, of_chunk = self.continues, own[..., -1]
        across = self.same_chunks[..., :-1, 1:]  # of the states before and after chunks
        if reverse:
            of_chunk = xp.where(inside[..., 0], own[..., 0], 0.0)
            inside, across = self.reaches_end, across.swapaxes(-1, -2)
        others = xp.where(across, of_chunk[..., None, :], 0.0).sum(-1)
        return own + xp.where(inside, others[..., None], 0.0)


def initial_state(state: Sequence[Array] | None) -> Sequence[Array] | None:
    """Return a state, or None where its parts are None, the state before the first position."""
    return None if state is None or state[0] is None else state


def to_chunks(x: Array, L: int, xp: Arrays, value: float = 0.0) -> Array:
    """(B, NH, S, ...) -> (B, NH, NC, L, ...), padded on the right to whole chunks."""
    B, NH, S, *D = x.shape
    if S % L:
        x = xp.pad(x, [(0, 0), (0, 0), (0, -S % L), *[(0, 0)] * len(D)], value)
    return x.reshape(B, NH, -1, L, *D)


def prepend(first: Array | None, x: Array, xp: Arrays) -> Array:
    """Return x (B, NH, NC, ...) with an entry (B, NH, ...) before it, zeros if it is None."""
    if first is None:
        return xp.pad(x, [(0, 0), (0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 3))
    return xp.concatenate([first[:, :, None], x], 2)


def from_chunks(h: Array, S: int) -> Array:
    """(B, NH, NC, L, D) -> (B, S, NH, D), without the padding of the last chunk."""
    return h.flatten(2, 3)[:, :, :S].swapaxes(1, 2)


def segsum(a: Array, xp: Arrays) -> Array:
    """Return the sums of a (..., L) over j < s <= t, (..., L, L); about `MASKED` where j > t.

    Each is a sum of its own: the difference of two longer sums would have their rounding error.
    """
    L = a.shape[-1]
    is_after = xp.from_numpy(np.tri(L, k=-1, dtype=bool), like=a)
    return xp.cumsum(xp.where(is_after, a[..., None], 0.0), -2) + causal_mask(L, xp, a)


def causal_mask(L: int, xp: Arrays, like: Array, value: float = 0.0) -> Array:
    """Return `MASKED` above the diagonal of (L, L), where a key follows the query, else value."""
    is_masked = np.triu(np.ones((L, L), bool), 1)
    return xp.from_numpy(np.where(is_masked, np.float32(MASKED), np.float32(value)), like=like)
