"""The cells beside mLSTM: the contract of each, and its eager implementation in any framework.

All arrays are float32. `slstm_cell` runs position by position; its equations are those of
`models/layers/xlstm.py`. The others are linear recurrences. All their exponents are at most
0, so nothing overflows for any decay.

`recurrence`, the gated delta rule with diagonal plus low-rank transitions (DPLR), runs chunk by
chunk. With b the sum of log_decay from the start of a chunk, S_0 the state before it and g = b_L,
it is, where nothing is removed (gated linear attention):

    h_t = scale ( S_0^T (q_t exp(b_t)) + sum_{j<=t} A_tj v_j )
    A_tj = q_t^T diag(exp(b_t - b_j)) k_j
    S_L = diag(exp(g)) S_0 + sum_j (k_j exp(g - b_j)) v_j^T

Every exponent is a sum of log_decay over consecutive positions. It is computed as this sum, not as
the difference of two longer sums, which would have their rounding error. If every element of a key
has its own decay, A is computed by halves: the scores of the later half of a block with its earlier
half split the decay at the border of the halves, (q_t exp(sum up to t)) . (k_j exp(sum after j)).
The scores inside each half are computed in the same way.
If queries match values (`transpose_state`), the same halves give

    h_t = scale ( diag(exp(b_t)) S_0 q_t + sum_{j<=t} (q_t . v_j) diag(exp(b_t - b_j)) k_j )

The removal e_t x_t^T, x_t = S_{t-1}^T r_t, reads S_{t-1} before the decay of step t.
With A as above and its rows shifted down by one, the first of zeros,

    P_tj(e) = r_t^T diag(exp(b_{t-1} - b_j)) e_j = A_{t-1,j} for the queries r_{t+1}, j < t
    (I + P(e)) X = P(k) V + diag(exp(b_{t-1})) R S_0
    h_t = S_0^T (q_t exp(b_t)) + sum_{j<=t} (A_tj(k) v_j - A_tj(e) x_j)

If e is k, the update is k_t u_t^T, u_t = v_t - x_t, (I + P(k)) U = V - diag(..) R S_0.
The delta rule is this case, with keys beta_t k_t and r_t = exp(log_decay_t) k_t. I + P is inverted
by halves, from blocks of size 1 on. No power of P is computed: with similar keys powers of P would
grow beyond all digits.

`regression_cell` applies S_t + diag(ridge) to all positions at once by `recurrence`, in each step
of conjugate gradients. Its gradient goes through the solution and not through the steps: with
r = q - (S + ridge) x, whose value is about 0, the gradient of x is that of (S + ridge)^-1 r with a
constant inverse, the same conjugate gradients on the way back.

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
from mlxhog.models.ops.mlstm import from_chunks, initial_state, segsum, to_chunks


class Recurrences(ABC):
    """The cells over a framework's array functions."""

    xp: Arrays

    @abstractmethod
    def sum_after(self, a: Array) -> Array:
        """Return the exclusive reverse cumulative sum of a (..., L, D) over its positions."""

    def slstm_cell(
        self, i: Array, f: Array, z: Array, o: Array, R: Array, b: Array, *,
        state: Sequence[Array] | None = None, reset_mask: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array, Array, Array]]:  # fmt: skip
        """Run the sLSTM cell over a sequence of any length from 1 on.

        i, f, z and o (B, S, NH, DH), pre-activations from the input only, f of a sigmoid;
        R (NH, 4 DH, DH), recurrent matrices, from the last index, as in the xlstm package on the
        CPU, and b (4 NH DH,), biases, both gate by gate, i, f, z, o; state h, c, n and m
        (B, NH, DH) each, None is zeros; reset_mask (B, S) bool or uint8, true at the first token of
        a document, where the state is reset to zero.

        Returns:
            h (B, S, NH, DH) and the state after the last position, float32, with exact gradients.
            The stabilizer m starts at the input gate if n is 0, element by element. The published
            code tests whether all of n is 0. For every state that the cell reaches this is the
            same, but here the rows of a batch do not depend on each other.
        """
        xp = self.xp
        B, _, NH, DH = i.shape
        pre = xp.stack([i, f, z, o], 3) + b.reshape(4, NH, DH).swapaxes(0, 1)
        h, c, n, m = initial_state(state) or [xp.zeros((B, NH, DH), like=pre)] * 4
        outputs = []
        for t, pre_t in enumerate(xp.unstack(pre, 1)):
            if reset_mask is not None:
                first = reset_mask[:, t, None, None] != 0
                h, c, n, m = (xp.where(first, 0.0, x) for x in (h, c, n, m))
            mixed = xp.linear(h.swapaxes(0, 1), R).swapaxes(0, 1).reshape(B, NH, 4, DH)
            i, f, z, o = xp.unstack(pre_t + mixed, 2)
            lf = m + xp.log_sigmoid(f)
            m = xp.where(n == 0, i, xp.maximum(i, lf))
            input_gate, forget_gate = xp.exp(i - m), xp.exp(xp.minimum(lf - m, 0.0))
            c = forget_gate * c + input_gate * xp.tanh(z)
            n = forget_gate * n + input_gate
            h = xp.sigmoid(o) * c / n
            outputs.append(h)
        return xp.stack(outputs, 1), (h, c, n, m)

    def recurrence(
        self, q: Array, k: Array, v: Array, log_decay: Array, *, beta: Array | None = None,
        read: Array | None = None, removal: Array | None = None, scale: float = 1.0,
        transpose_state: bool = False, chunk_size: int, state: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Run a linear recurrence or delta rule: S_t = D_t S_{t-1} - removed_t + k_t v_t^T.

        h_t = scale S_t^T q_t, D_t = diag(exp(log_decay_t)). Nothing is removed (gated linear
        attention); or, with beta, a share of the own key's value (the delta rule); or, with read
        and removal, a rank-1 term:

            beta    S_t = D_t S_{t-1} + beta_t k_t (v_t - S_{t-1}^T D_t k_t)^T
            read    removed_t = removal_t (S_{t-1}^T read_t)^T

        Args:
            q: (B, S, NH, DK); as v with `transpose_state`.
            k: (B, S, NH, DK). With beta no key is longer than 1, or the state may grow without
                bound; likewise with transitions of a norm above 1.
            v: (B, S, NH, DV).
            log_decay: (B, S, NH, DK), or (B, S, NH, 1) for one of the whole head; <= 0 and of any
                size: no implementation may overflow.
            beta: (B, S, NH), in [0, 2].
            read: as k, with a log_decay as wide; the key whose value is removed.
            removal: as k; the direction in which that value is removed.
            scale: of h.
            transpose_state: h_t = scale S_t q_t instead, so queries match values, and h is as k;
                nothing may be removed.
            chunk_size: positions computed in parallel, a power of 2.
            state: S before the first position, (B, NH, DK, DV); None is zeros.

        Returns:
            h (B, S, NH, DV), as k with `transpose_state`, and S after the last position, float32,
            with exact gradients.
        """
        xp, S = self.xp, q.shape[1]
        q = q if scale == 1 else scale * q  # a node less
        q, k, v, a = (x.swapaxes(1, 2) for x in (q, k, v, log_decay))
        reads: list[Array] = []
        if beta is not None:
            reads, k = [xp.exp(a) * k], beta.swapaxes(1, 2)[..., None] * k
        elif read is not None and removal is not None:
            reads = [x.swapaxes(1, 2) for x in (read, removal)]
        if state is None:
            state = xp.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]), like=q)
        if S == 1:
            before, state = state, xp.exp(a).swapaxes(-1, -2) * state + k.swapaxes(-1, -2) * v
            if reads:
                removed = k if beta is not None else reads[1]
                state = state - removed.swapaxes(-1, -2) * (reads[0] @ before)
            h = q @ (state.swapaxes(-1, -2) if transpose_state else state)
            return h.swapaxes(1, 2), state
        L = min(chunk_size, 1 << (S - 1).bit_length())
        q, k, v, *reads, a = (to_chunks(x, L, xp) for x in (q, k, v, *reads, a))
        b = xp.cumsum(a, -2)
        to_end, decay = xp.exp(self.sum_after(a)), xp.exp(b[..., -1:, :]).swapaxes(-1, -2)
        states = [state]
        if reads:
            h = self._with_removal(q, k, v, a, b, to_end, decay, reads, states)
        else:
            add = (k * to_end).swapaxes(-1, -2) @ v
            for decay_c, add_c in zip(xp.unstack(decay, 2), xp.unstack(add, 2), strict=True):
                states.append(decay_c * states[-1] + add_c)
            h = self._query_values(q, k, v, a) if transpose_state else self._scores(q, k, a) @ v
        before = xp.stack(states[:-1], 2)
        if transpose_state:
            h = h + (q @ before.swapaxes(-1, -2)) * xp.exp(b)
        else:
            h = h + (q * xp.exp(b)) @ before
        return from_chunks(h, S), states[-1]

    def _with_removal(
        self, q: Array, k: Array, v: Array, a: Array, b: Array, to_end: Array, decay: Array,
        reads: Sequence[Array], states: list[Array],
    ) -> Array:  # fmt: skip
        """Append the state after each chunk to `states`; return the intra-chunk part of h."""
        xp, (r, *removal) = self.xp, reads
        below = [(0, 0)] * 3 + [(1, 0), (0, 0)]  # shifts rows to the next position
        keys = xp.stack([*removal, k])
        next_r = xp.pad(r, [(0, 0)] * 3 + [(0, 1), (0, 0)])[..., 1:, :]
        A, P = xp.unstack(self._scores(xp.stack([q, next_r])[:, None], keys, a))
        P = xp.pad(P, [(0, 0), *below])[..., :-1, :]
        inverse = self._unit_inverse(P[0])
        own = inverse @ (-P[1] @ v if removal else v)
        r_state = inverse @ (r * xp.exp(xp.pad(b, below)[..., :-1, :]))
        written = (keys * to_end).swapaxes(-1, -2)
        add = written[1] @ v if removal else xp.zeros_like(decay)
        us = []
        parts = (xp.unstack(part, 2) for part in (own, r_state, written[0], decay, add))
        for own_c, r_state_c, written_c, decay_c, add_c in zip(*parts, strict=True):
            us.append(own_c - r_state_c @ states[-1])
            states.append(decay_c * states[-1] + written_c @ us[-1] + add_c)
        h = A[0] @ xp.stack(us, 2)
        return h + A[1] @ v if removal else h

    def _scores(self, q: Array, k: Array, a: Array) -> Array:
        """Return A (..., L, L), lower triangular; q, k (..., L, DK), a likewise or (..., L, 1)."""
        xp = self.xp
        if a.shape[-1] == 1:
            return (q @ k.swapaxes(-1, -2)) * xp.exp(segsum(a[..., 0], xp))
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

    def _query_values(self, q: Array, k: Array, v: Array, a: Array) -> Array:
        """Return sum_{j<=t} (q_t . v_j) exp(b_t - b_j) k_j, as k; q and v (..., L, DV)."""
        xp = self.xp
        if a.shape[-1] == 1:
            return self._scores(q, v, a) @ k
        h = (q * v).sum(-1)[..., None] * k
        m = 1
        while m < q.shape[-2]:
            a_early, a_late = self._halves(a, m)
            (k_early, _), (v_early, _), (_, q_late) = (self._halves(x, m) for x in (k, v, q))
            own = q_late @ v_early.swapaxes(-1, -2)
            across = own @ (k_early * xp.exp(self.sum_after(a_early)))
            across = across * xp.exp(xp.cumsum(a_late, -2))
            h = h + xp.stack([xp.zeros_like(across), across], -3).reshape(*h.shape)
            m *= 2
        return h

    def _halves(self, x: Array, m: int) -> Sequence[Array]:
        """Cut x (..., L, D) into blocks of 2 m: earlier and later halves (..., blocks, m, D)."""
        return tuple(self.xp.unstack(x.reshape(*x.shape[:-2], -1, 2, m, x.shape[-1]), -3))

    def _pairs(self, A: Array) -> Sequence[Array]:
        """Return the first and the second of every two matrices (..., blocks, m, m)."""
        *batch, _, m, _ = A.shape
        return tuple(self.xp.unstack(A.reshape(*batch, -1, 2, m, m), -3))

    def _joined(self, A: Array, below: Array) -> Array:
        """Put every two matrices (..., blocks, m, m) on a diagonal, `below` them, 0 above."""
        xp, (early, late) = self.xp, self._pairs(A)
        above = xp.concatenate([early, xp.zeros_like(below)], -1)
        return xp.concatenate([above, xp.concatenate([below, late], -1)], -2)

    def regression_cell(
        self, q: Array, k: Array, log_decay: Array, ridge: Array, *, steps: int, chunk_size: int,
        state: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Run S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t.

        q and k (B, S, NH, D); log_decay (B, S, NH, 1), at most 0; ridge (NH, D), above 0; at most
        `steps` of conjugate gradients, fewer where |q - (S + ridge) x| is 1e-7 of |q|; state S
        (B, NH, D, D), symmetric, None is zeros.

        Returns:
            x, as q, and S after the last position, float32. The gradient is that of the solution,
            not of the steps, solved in the same way.
        """
        xp, system = self.xp, (k, log_decay, ridge, *(() if state is None else (state,)))

        def applied(
            x: Array, k: Array, a: Array, ridge: Array, state: Array | None = None
        ) -> tuple[Array, Array]:
            y, S = self.recurrence(x, k, k, a, chunk_size=chunk_size, state=state)
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

    def selective_scan(
        self, u: Array, dt: Array, A: Array, Bt: Array, Ct: Array, *, state: Array | None = None
    ) -> tuple[Array, Array]:
        """Run S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t, y_t[c] = S_t[c] . Ct_t.

        u and dt (B, S, C), dt >= 0; A (C, N), at most 0; Bt and Ct (B, S, N); state (B, C, N), None
        is zeros. Returns y (B, S, C) and S after the last position, float32, with exact gradients.
        """
        xp, S = self.xp, u.shape[1]
        a = xp.exp(dt[..., None] * A)
        add = (dt * u)[..., None] * Bt[:, :, None]
        if state is not None:
            add = xp.concatenate([add[:, :1] + a[:, :1] * state[:, None], add[:, 1:]], 1)
        rest = [(0, 0), (0, (1 << (S - 1).bit_length()) - S), (0, 0), (0, 0)]
        states = self._scan(xp.pad(a, rest), xp.pad(add, rest))[:, :S]
        return (states @ Ct[..., None])[..., 0], states[:, -1]

    def _scan(self, a: Array, x: Array) -> Array:
        """Return the states after every position of a, x (B, S, C, N) from zeros; S = 2^n."""
        if x.shape[1] == 1:
            return x
        xp, (B, S, C, N) = self.xp, x.shape
        a_first, a_second = xp.unstack(a.reshape(B, S // 2, 2, C, N), 2)
        x_first, x_second = xp.unstack(x.reshape(B, S // 2, 2, C, N), 2)
        second = self._scan(a_second * a_first, a_second * x_first + x_second)
        before = xp.pad(second[:, :-1], [(0, 0), (1, 0), (0, 0), (0, 0)])
        return xp.stack([x_first + a_first * before, second], 2).flatten(1, 2)
