"""The cells beside mLSTM, plain, over either framework; `operators.py` defines each of them.

All compute in float32. `slstm_cell` runs position by position; its equations are in
`recurrences_numpy.py`. The others are linear recurrences. All their exponents are at most 0, so
nothing overflows for any decay.

`decay_cell` runs chunk by chunk. With b the sum of log_decay from the start of a chunk, S_0 the
state before it and g = b_L:

    h_t = scale ( S_0^T (q_t exp(b_t)) + sum_{j<=t} A_tj v_j )
    A_tj = q_t^T diag(exp(b_t - b_j)) k_j
    S_L = diag(exp(g)) S_0 + sum_j (k_j exp(g - b_j)) v_j^T

Every exponent is a sum of log_decay over consecutive positions. It is computed as this sum, not as
the difference of two longer sums, which would have their rounding error. If every element of a key
has its own decay, A is computed by halves: the scores of the later half of a block with its earlier
half split the decay at the border of the halves, (q_t exp(sum up to t)) . (k_j exp(sum after j)).
The scores inside each half are computed in the same way.
Read by value, the same halves give

    h_t = scale ( diag(exp(b_t)) S_0 q_t + sum_{j<=t} (q_t . v_j) diag(exp(b_t - b_j)) k_j )

`regression_cell` applies S_t + diag(ridge) to all positions at once by `decay_cell`, in each step
of conjugate gradients. Its gradient goes through the solution and not through the steps: with
r = q - (S + ridge) x, whose value is about 0, the gradient of x is that of (S + ridge)^-1 r with a
constant inverse, the same conjugate gradients on the way back.

`delta_cell` runs chunk by chunk, too. A position writes k_t u_t^T with
u_t = beta_t (v_t - a_t S_{t-1}^T k_t), so that

    (I + M) U = diag(beta) (V - diag(exp(b)) K S_0),   M_tj = beta_t exp(b_t - b_j) k_t . k_j, j < t
    h_t = S_0^T q_t exp(b_t) + sum_{j<=t} exp(b_t - b_j) (q_t . k_j) u_j
    S_L = exp(g) S_0 + sum_j exp(g - b_j) k_j u_j^T

I + M is inverted by halves, from blocks of size 1 on. No power of M is computed: with similar keys
powers of M would grow beyond all digits.

`dplr_cell` does so with a decay per element of a key, and with keys r and e in the place of k where
it reads and removes. A position removes e_t x_t^T, x_t = S_{t-1}^T r_t, from a memory that the
position has not decayed yet. With A as above and its last row moved to the first, of zeros,

    P_tj(e) = r_t^T diag(exp(b_{t-1} - b_j)) e_j = A_{t-1,j} for the queries r_{t+1}, j < t
    (I + P(e)) X = P(k) V + diag(exp(b_{t-1})) R S_0
    h_t = S_0^T (q_t exp(b_t)) + sum_{j<=t} (A_tj(k) v_j - A_tj(e) x_j)

If e is k, what a position writes is k_t u_t^T, u_t = v_t - x_t, (I + P(k)) U = V - diag(..) R S_0.

`selective_scan` takes log2(S) rounds. Two positions of S_t = a_t S_{t-1} + x_t combine to one,
(a' a, a' x + x'), which halves the sequence. The states after every second position come from the
halved sequence, the others from the states before them. There is no division by a decay.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517; Yang et al. 2024, Gated Linear Attention,
arXiv:2312.06635; Dao and Gu 2024, Transformers are SSMs, arXiv:2405.21060; Yang et al. 2024,
Parallelizing Linear Transformers with the Delta Rule, arXiv:2406.06484; Yang et al. 2024, Gated
Delta Networks, arXiv:2412.06464; Gu and Dao 2023, Mamba, arXiv:2312.00752; Blelloch 1990, Prefix
Sums and Their Applications.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.reference.mlstm import Finite, from_chunks, sums_after, to_chunks


class Recurrences(ABC):
    """The cells over a framework's array functions."""

    xp: Arrays[Array]
    guarded: bool

    @abstractmethod
    def sum_after(self, a: Array) -> Array:
        """Return the sum of a (..., L, D) over the positions after each."""

    def slstm_cell(
        self, *x: Array, state: Sequence[Array] | None, starts: Array | None
    ) -> tuple[Array, tuple[Array, Array, Array, Array]]:
        xp, (*ifzo, R, b) = self.xp, x
        B, _, NH, DH = ifzo[0].shape
        pre = xp.stack([xp.float32(gate) for gate in ifzo], 3)
        pre = pre + xp.float32(b).reshape(4, NH, DH).swapaxes(0, 1)
        R = xp.float32(R)
        h, c, n, m = state or [xp.zeros((B, NH, DH), like=pre)] * 4
        outputs = []
        for t, pre_t in enumerate(xp.unstack(pre, 1)):
            if starts is not None:
                first = starts[:, t, None, None] != 0
                h, c, n, m = (xp.where(first, 0.0, x) for x in (h, c, n, m))
            mixed = xp.linear(h.swapaxes(0, 1), R).swapaxes(0, 1).reshape(B, NH, 4, DH)
            h, c, n, m = self._slstm_step(pre_t + mixed, c, n, m)
            outputs.append(h)
        return xp.stack(outputs, 1), (h, c, n, m)

    def _slstm_step(
        self, pre: Array, c: Array, n: Array, m: Array
    ) -> tuple[Array, Array, Array, Array]:
        """The state after one step; pre (B, NH, 4, DH)."""
        xp = self.xp
        i, f, z, o = xp.unstack(pre, 2)
        lf = m + xp.log_sigmoid(f)
        m = xp.where(n == 0, i, xp.maximum(i, lf))
        write = xp.exp(i - m)
        keep = xp.exp(xp.minimum(lf - m, 0.0))
        c = keep * c + write * xp.tanh(z)
        n = keep * n + write
        return xp.sigmoid(o) * c / n, c, n, m

    def decay_cell(
        self,
        q: Array,
        *kva: Array,
        scale: float,
        chunk_size: int,
        state: Array | None,
        by_value: bool,
    ) -> tuple[Array, Array]:
        xp, S = self.xp, q.shape[1]
        q, k, v, a = (xp.float32(x).swapaxes(1, 2) for x in (scale * q, *kva))
        if state is None:
            state = xp.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]), like=q)
        if S == 1:
            state = xp.exp(a).swapaxes(-1, -2) * state + k.swapaxes(-1, -2) * v
            h = q @ (state.swapaxes(-1, -2) if by_value else state)
            return h.swapaxes(1, 2), state
        finite = Finite(self, k, v)
        k, v = finite.inputs
        L = _chunk_length(chunk_size, S)
        q, k, v, a = (to_chunks(x, L, xp) for x in (q, k, v, a))
        b = xp.cumsum(a, -2)
        add = (k * xp.exp(self.sum_after(a))).swapaxes(-1, -2) @ v
        decay = xp.exp(b[..., -1:, :]).swapaxes(-1, -2)
        states = [state]
        for decay_c, add_c in zip(xp.unstack(decay, 2), xp.unstack(add, 2), strict=True):
            states.append(decay_c * states[-1] + add_c)
        if a.shape[-1] == 1:
            read, written = (v, k) if by_value else (k, v)
            h = ((q @ read.swapaxes(-1, -2)) * self._between(a[..., 0])) @ written
        else:
            h = self._read_by_value(q, k, v, a) if by_value else self._scores(q, k, a) @ v
        before = xp.stack(states[:-1], 2)
        if by_value:
            h = h + (q @ before.swapaxes(-1, -2)) * xp.exp(b)
        else:
            h = h + (q * xp.exp(b)) @ before
        h, last = finite.spoil(from_chunks(h, S), states[-1])
        return h, last

    def _between(self, a: Array, *, own: bool = True) -> Array:
        """Return exp(sum of a after j, up to t) (..., L, L) where j < t, or j <= t if `own`."""
        between = self.xp.exp(sums_after(a, self.xp))
        return between if own else self.xp.tril(between, -1)

    def _scores(self, q: Array, k: Array, a: Array) -> Array:
        """Return A (..., L, L), 0 above the diagonal; q, k and a (..., L, DK)."""
        xp = self.xp
        A = (q * k).sum(-1)[..., None, None]  # (..., blocks, m, m)
        m = 1
        while m < q.shape[-2]:
            a_early, a_late = self._halves(a, m)
            k_early, q_late = self._halves(k, m)[0], self._halves(q, m)[1]
            from_late = q_late * xp.exp(xp.cumsum(a_late, -2))
            across = from_late @ (k_early * xp.exp(self.sum_after(a_early))).swapaxes(-1, -2)
            A = self._joined(A, across)
            m *= 2
        return A.squeeze(-3)

    def _read_by_value(self, q: Array, k: Array, v: Array, a: Array) -> Array:
        """Return sum_{j<=t} (q_t . v_j) exp(b_t - b_j) k_j, as k; q and v (..., L, DV)."""
        xp = self.xp
        h = (q * v).sum(-1)[..., None] * k
        m = 1
        while m < q.shape[-2]:
            a_early, a_late = self._halves(a, m)
            k_early, v_early, q_late = (self._halves(x, m)[x is q] for x in (k, v, q))
            own = q_late @ v_early.swapaxes(-1, -2)
            across = own @ (k_early * xp.exp(self.sum_after(a_early)))
            across = across * xp.exp(xp.cumsum(a_late, -2))
            h = h + xp.stack([xp.zeros_like(across), across], -3).reshape(*h.shape)
            m *= 2
        return h

    def _halves(self, x: Array, m: int) -> Sequence[Array]:
        """Cut x (..., L, D) into blocks of 2 m: earlier and later halves (..., blocks, m, D)."""
        return self.xp.unstack(x.reshape(*x.shape[:-2], -1, 2, m, x.shape[-1]), -3)

    def _pairs(self, A: Array) -> Sequence[Array]:
        """Return the first and the second of every two matrices (..., blocks, m, m)."""
        *batch, _, m, _ = A.shape
        return self.xp.unstack(A.reshape(*batch, -1, 2, m, m), -3)

    def _joined(self, A: Array, below: Array) -> Array:
        """Put every two matrices (..., blocks, m, m) on a diagonal, `below` them, 0 above."""
        xp, (early, late) = self.xp, self._pairs(A)
        above = xp.concatenate([early, xp.zeros_like(below)], -1)
        return xp.concatenate([above, xp.concatenate([below, late], -1)], -2)

    def regression_cell(
        self, *x: Array, steps: int, chunk_size: int, state: Array | None
    ) -> tuple[Array, Array]:
        xp, (q, k, a, ridge) = self.xp, (self.xp.float32(y) for y in x)
        system = (k, a, ridge, *(() if state is None else (state,)))

        def applied(
            x: Array, k: Array, a: Array, ridge: Array, state: Array | None = None
        ) -> tuple[Array, Array]:
            y, S = self.decay_cell(
                x, k, k, a, scale=1.0, chunk_size=chunk_size, state=state, by_value=False
            )
            return y + ridge * x, S

        def solved(b: Array, *system: Array) -> Array:
            x, rest, direction = xp.zeros_like(b), b, b
            size = (b * b).sum(-1)
            for _ in range(steps):
                image, _ = applied(direction, *system)
                curvature = (direction * image).sum(-1)
                step = (size / xp.where(curvature > 0, curvature, 1.0))[..., None]
                x, rest, before = x + step * direction, rest - step * image, size
                size = (rest * rest).sum(-1)
                direction = rest + (size / xp.where(before > 0, before, 1.0))[..., None] * direction
            return x

        constants = [xp.stop_gradient(part) for part in system]
        solution = solved(xp.stop_gradient(q), *constants)
        image, S = applied(solution, *system)
        rest = xp.with_gradient(q - image, solved, *constants)
        return solution + (rest - xp.stop_gradient(rest)), S

    def delta_cell(self, *x: Array, chunk_size: int, state: Array | None) -> tuple[Array, Array]:
        xp, (q, k, v, *gates) = self.xp, x
        S = q.shape[1]
        wide = (q, k, v, *(gate[..., None] for gate in gates))
        q, k, v, a, beta = (xp.float32(y).swapaxes(1, 2) for y in wide)
        finite = Finite(self, k, v, beta, decays=[a])
        k, v, beta, a = finite.inputs
        if state is None:
            state = xp.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), like=q)
        L = _chunk_length(chunk_size, S)
        q, k, v, a, beta = (to_chunks(x, L, xp) for x in (q, k, v, a, beta))
        b = xp.cumsum(a, -2)
        M = beta * (k @ k.swapaxes(-1, -2)) * self._between(a[..., 0], own=False)
        inverse = self._unit_inverse(M)
        own = inverse @ (beta * v)
        seen = inverse @ (beta * xp.exp(b) * k)
        written = (k * xp.exp(self.sum_after(a))).swapaxes(-1, -2)
        decay = xp.exp(b[..., -1:, :])
        states, us = [state], []
        parts = (xp.unstack(part, 2) for part in (own, seen, written, decay))
        for own_c, seen_c, written_c, decay_c in zip(*parts, strict=True):
            us.append(own_c - seen_c @ states[-1])
            states.append(decay_c * states[-1] + written_c @ us[-1])
        A = (q @ k.swapaxes(-1, -2)) * self._between(a[..., 0])
        h = A @ xp.stack(us, 2) + (q * xp.exp(b)) @ xp.stack(states[:-1], 2)
        h, last = finite.spoil(from_chunks(h, S), states[-1])
        return h, last

    def dplr_cell(self, *x: Array, chunk_size: int, state: Array | None) -> tuple[Array, Array]:
        xp, S = self.xp, x[0].shape[1]
        q, k, v, a, *reads = (xp.float32(y).swapaxes(1, 2) for y in x if y is not None)
        finite = Finite(self, k, v, *reads, decays=[a])
        k, v, *reads, a = finite.inputs
        if state is None:
            state = xp.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), like=q)
        L = _chunk_length(chunk_size, S)
        q, k, v, a, r, *removal = (to_chunks(y, L, xp) for y in (q, k, v, a, *reads))
        below = [(0, 0)] * 3 + [(1, 0), (0, 0)]  # moves rows to the next position
        b = xp.cumsum(a, -2)
        keys = xp.stack([*removal, k])
        next_r = xp.pad(r, [(0, 0)] * 3 + [(0, 1), (0, 0)])[..., 1:, :]
        A = self._scores(xp.stack([q, next_r])[:, None], keys, a)
        A, P = xp.unstack(A)
        P = xp.pad(P, [(0, 0), *below])[..., :-1, :]
        inverse = self._unit_inverse(P[0])
        own = inverse @ (-P[1] @ v if removal else v)
        seen = inverse @ (r * xp.exp(xp.pad(b, below)[..., :-1, :]))
        written = (keys * xp.exp(self.sum_after(a))).swapaxes(-1, -2)
        decay = xp.exp(b[..., -1:, :]).swapaxes(-1, -2)
        add = written[1] @ v if removal else xp.zeros_like(decay)
        states, us = [state], []
        parts = (xp.unstack(part, 2) for part in (own, seen, written[0], decay, add))
        for own_c, seen_c, written_c, decay_c, add_c in zip(*parts, strict=True):
            us.append(own_c - seen_c @ states[-1])
            states.append(decay_c * states[-1] + written_c @ us[-1] + add_c)
        h = A[0] @ xp.stack(us, 2) + (q * xp.exp(b)) @ xp.stack(states[:-1], 2)
        h, last = finite.spoil(from_chunks(h + A[1] @ v if removal else h, S), states[-1])
        return h, last

    def _unit_inverse(self, M: Array) -> Array:
        """Return (I + M)^-1 of strictly lower triangular M (..., L, L), L a power of 2."""
        xp, L = self.xp, M.shape[-1]
        X = xp.full((*M.shape[:-1], 1, 1), 1.0, like=M)  # (..., blocks, m, m) on the diagonal
        m = 1
        while m < L:
            blocks = M.reshape(*M.shape[:-2], -1, 2, m, L // (2 * m), 2, m)
            pairs = blocks[..., :, 1, :, :, 0, :]  # (..., pairs, m, pairs, m)
            across = xp.moveaxis(xp.diagonal(pairs, 0, -4, -2), -1, -3)
            early, late = self._pairs(X)
            X = self._joined(X, -(late @ across @ early))
            m *= 2
        return X.squeeze(-3)

    def selective_scan(self, *x: Array, state: Array | None) -> tuple[Array, Array]:
        xp = self.xp
        u, dt, A, Bt, Ct = (xp.float32(y) for y in x)
        S = u.shape[1]
        a = xp.exp(dt[..., None] * A)
        add = (dt * u)[..., None] * Bt[:, :, None]
        if state is not None:
            add = xp.concatenate([add[:, :1] + a[:, :1] * state[:, None], add[:, 1:]], 1)
        rest = [(0, 0), (0, (1 << (S - 1).bit_length()) - S), (0, 0), (0, 0)]
        states = self._scan(xp.pad(a, rest), xp.pad(add, rest))[:, :S]
        return (states @ Ct[..., None])[..., 0], states[:, -1]

    def _scan(self, a: Array, x: Array) -> Array:
        """States after every position of a, x (B, S, C, N) from zeros; S a power of 2."""
        if x.shape[1] == 1:
            return x
        xp, (B, S, C, N) = self.xp, x.shape
        a_first, a_second = xp.unstack(a.reshape(B, S // 2, 2, C, N), 2)
        x_first, x_second = xp.unstack(x.reshape(B, S // 2, 2, C, N), 2)
        second = self._scan(a_second * a_first, a_second * x_first + x_second)
        before = xp.pad(second[:, :-1], [(0, 0), (1, 0), (0, 0), (0, 0)])
        return xp.stack([x_first + a_first * before, second], 2).flatten(1, 2)


def _chunk_length(chunk_size: int, S: int) -> int:
    """Return the chunk's length for S positions: no longer than the next power of 2."""
    return int(min(chunk_size, 1 << (S - 1).bit_length()))
