"""The operators of models: arguments, shapes and promises, of all forms in either framework."""

from collections.abc import Sequence
from typing import Any

from mlxhog.errors import ConfigError
from mlxhog.models.ops.arrays import Array, Arrays

LONGEST_SUM = 32_766
"""Most terms of a sum in a matrix product of torch on an Apple GPU, so most tokens of a gradient.

With more, MPS reads behind the operands on M1 and M2: in torch before 2.14, and in products of
batches of matrices later, too. Sources: pytorch issues 177116, 193487 and 195163.
"""

ACTIVATIONS = tuple("gelu gelu_tanh silu swish relu relu^2 sigmoid selu softplus".split())
"""Activation functions of `activate` and `glu`, by the names of the xlstm package.

`silu` and `swish` are the same. `gelu` is exact, x Phi(x), computed with erf; `gelu_tanh` is its
approximation with tanh. `softplus` is log(1 + e^x).
"""


class Ops:
    """The differentiable operators in which models are written, for arrays of one framework.

    Only this class defines each operator: its arguments, defaults, shapes and promises. A form
    computes them: plain (`reference/plain.py`), native (`native/operators.py`) or Metal
    (`metal/cells.py`). A form has a method for each operator, with the same name and result; it
    takes the arrays by position and all other arguments by name, without defaults.

    Gates, norms, states and sums are float32 for every type of the other inputs.

    Attributes:
        form: computes the operators.
        xp: the framework's array functions, named as in the Python array API standard.
    """

    def __init__(self, form: Any) -> None:
        self.form = form
        self.xp: Arrays = form.xp

    def rms_norm(self, x: Array, w: Array, eps: float) -> Array:
        """Return w * x / sqrt(mean(x^2) + eps) over the last axis; x (..., d), w (d,)."""
        return self.form.rms_norm(x, w, eps=eps)

    def layer_norm(self, x: Array, w: Array, eps: float) -> Array:
        """Return w * (x - mean(x)) / sqrt(var(x) + eps) over the last axis; x (..., d), w (d,).

        The variance is the biased one; the result has the type of x.
        """
        return self.form.layer_norm(x, w, eps=eps)

    def head_norm(self, h: Array, w: Array, eps: float) -> Array:
        """Return w * LayerNorm(h), normalised over DH within each head.

        h (B, S, NH, DH), w (NH * DH,); result (B, S, NH * DH), of the type of h.
        """
        return self.form.head_norm(h, w, eps=eps)

    def linears(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None] | None = None
    ) -> tuple[Array, ...]:
        """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in).

        Each product is computed in the type of its weight, which may be bfloat16, and returned in
        the type of x; the same holds for `block_diagonal`.
        """
        return tuple(self.form.linears(x, weights, biases or [None] * len(weights)))

    def block_diagonal(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None] | None = None
    ) -> tuple[Array, ...]:
        """Return x W^T + b of block-diagonal matrices, each given by its G diagonal blocks.

        x (..., in), every weight (G, out / G, in / G), every bias (out,) or None: result
        (..., out), whose slice g is slice g of x mapped by weight[g].
        """
        return tuple(self.form.block_diagonal(x, weights, biases or [None] * len(weights)))

    def causal_conv(
        self, x: Array, w: Array, b: Array | None, *, state: Array | None = None,
        starts: Array | None = None, silu: bool,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Convolve every channel with its own taps: y[t] = b + sum_j w[j] x[t - (K - 1) + j].

        x (B, S, C); w (C, 1, K), K >= 1, whose last tap is for the position itself; b (C,), None is
        zeros; state (B, K - 1, C), the inputs before the first position, None is zeros; starts
        (B, S) bool, the first token of each document: no tap sees earlier documents. With `silu`
        the result is silu(y).

        Returns:
            y (B, S, C), of the type of x, and the state after the last position, float32: the last
            K - 1 inputs, of which those of earlier documents are zero.
        """
        b = self.xp.zeros_like(w[:, 0, 0]) if b is None else b
        y, last = self.form.causal_conv(x, w, b, state=state, starts=starts, silu=silu)
        return y, last

    def activate(self, x: Array, activation: str) -> Array:
        """Return act(x); `activation` is one of `ACTIVATIONS`.

        Raises:
            ConfigError: there is no such activation.
        """
        return self.form.activate(x, activation=activation_name(activation))

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        """Return act(gate) * up; both of one shape, `activation` one of `ACTIVATIONS`.

        Raises:
            ConfigError: there is no such activation.
        """
        return self.form.glu(gate, up, activation=activation_name(activation))

    def swiglu(self, gate: Array, up: Array) -> Array:
        """Return silu(gate) * up; both of one shape."""
        return self.form.swiglu(gate, up)

    def soft_cap(self, x: Array, c: float) -> Array:
        """Return c * tanh(x / c)."""
        return self.form.soft_cap(x, c=c)

    def mlstm_cell(
        self, q: Array, k: Array, v: Array, i: Array, f: Array, *, chunk_size: int, eps: float,
        state: Sequence[Array] | None = None,
    ) -> tuple[Array, tuple[Array, Array, Array]]:  # fmt: skip
        """Run the mLSTM cell over a sequence of any length; one step if S = 1.

        q and k (B, S, NH, DK), v (B, S, NH, DV); i and f (B, S, NH), pre-activations of the input
        and forget gates after any cap; `chunk_size` positions are computed in parallel; eps is
        added to the denominator; state C (B, NH, DK, DV), n (B, NH, DK), m (B, NH), None is zeros.

        Returns:
            h (B, S, NH, DV) and the state after the last position, float32. Gradients are exact,
            including those through m.
        """
        state = None if state is None or state[0] is None else state
        h, last = self.form.mlstm_cell(q, k, v, i, f, chunk_size=chunk_size, eps=eps, state=state)
        return h, last

    def slstm_cell(
        self, i: Array, f: Array, z: Array, o: Array, R: Array, b: Array, *,
        state: Sequence[Array] | None = None, starts: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array, Array, Array]]:  # fmt: skip
        """Run the sLSTM cell over a sequence of any length from 1 on.

        i, f, z and o (B, S, NH, DH), pre-activations from the input only, f of a sigmoid;
        R (NH, 4 DH, DH), recurrent matrices, from the last index, as in the xlstm package on the
        CPU, and b (4 NH DH,), biases, both gate by gate, i, f, z, o; state h, c, n and m
        (B, NH, DH) each, None is zeros; starts (B, S) bool or uint8, true at the first token of a
        document, before which the whole state counts as zero.

        Returns:
            h (B, S, NH, DH) and the state after the last position, float32, with exact gradients.
            The stabiliser m starts at the input gate if n is 0, element by element. The published
            code tests whether all of n is 0. For every state that the cell reaches this is the
            same, but here the rows of a batch do not depend on each other.
        """
        state = None if state is None or state[0] is None else state
        h, last = self.form.slstm_cell(i, f, z, o, R, b, state=state, starts=starts)
        return h, last

    def rope(self, x: Array, base: float, offset: Array | None = None) -> Array:
        """Turn pair i of every head, elements i and DH / 2 + i, by t * base^(-2 i / DH).

        x (B, S, NH, DH), DH even; offset (B,) int32, the position t of the first, None is 0.
        Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
        """
        return self.form.rope(x, base=base, offset=offset)

    def attention(
        self, q: Array, k: Array, v: Array, *, window: int | None = None,
        lengths: Array | None = None,
    ) -> Array:  # fmt: skip
        """Return softmax(q k^T / sqrt(DH)) v over the keys up to each query's own, as q.

        q (B, S, NH, DH); k and v (B, L, NH, DH), L >= S, of which the last S are those of the
        queries' positions. A query sees `window` positions before its own, None is all. lengths
        (B,) int32, S to L, is the number of a row's last keys that are used; those before them are
        padding; None is L.
        """
        return self.form.attention(q, k, v, window=window, lengths=lengths)

    def recurrence(
        self, q: Array, k: Array, v: Array, log_decay: Array, *, beta: Array | None = None,
        read: Array | None = None, removal: Array | None = None, scale: float = 1.0,
        by_value: bool = False, chunk_size: int, state: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Run S_t = D_t S_{t-1} - removed_t + k_t v_t^T, h_t = scale S_t^T q_t.

        D_t = diag(exp(log_decay_t)). Nothing is removed; or, with beta, the own key's value, of
        which a share is replaced (the delta rule); or, with read and removal, one of rank 1:

            beta    S_t = D_t S_{t-1} + beta_t k_t (v_t - S_{t-1}^T D_t k_t)^T
            read    removed_t = removal_t (S_{t-1}^T read_t)^T

        Args:
            q: (B, S, NH, DK); as v with `by_value`.
            k: (B, S, NH, DK). With beta no key is longer than 1, or the state may grow without
                bound; likewise with transitions of a length above 1.
            v: (B, S, NH, DV).
            log_decay: (B, S, NH, DK), or (B, S, NH, 1) for one of the whole head; <= 0 and of any
                size: no form may overflow.
            beta: (B, S, NH), in [0, 2].
            read: as k, with a log_decay as wide; the key whose value is removed.
            removal: as k, from where that value is removed.
            scale: of h.
            by_value: h_t = scale S_t q_t instead, the key that belongs to a value; nothing may be
                removed.
            chunk_size: positions computed in parallel, a power of 2.
            state: S before the first position, (B, NH, DK, DV); None is zeros.

        Returns:
            h (B, S, NH, DV), as k with `by_value`, and S after the last position, float32, with
            exact gradients.
        """
        arrays = (q, k, v, log_decay, beta, read, removal, state)
        how: dict[str, Any] = {"scale": scale, "by_value": by_value, "chunk_size": chunk_size}
        h, last = self.form.recurrence(*arrays, **how)
        return h, last

    def regression_cell(
        self, q: Array, k: Array, log_decay: Array, ridge: Array, *, steps: int, chunk_size: int,
        state: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Run S_t = exp(log_decay_t) S_{t-1} + k_t k_t^T, x_t = (S_t + diag(ridge))^-1 q_t.

        q and k (B, S, NH, D); log_decay (B, S, NH, 1), at most 0; ridge (NH, D), above 0; at most
        `steps` of conjugate gradients: a form may end them when |q - (S + ridge) x| is 1e-7 of |q|;
        state S (B, NH, D, D), symmetric, None is zeros.

        Returns:
            x, as q, and S after the last position, float32. The gradient is that of the solution,
            not of the steps, solved in the same way.
        """
        how: dict[str, Any] = {"steps": steps, "chunk_size": chunk_size, "state": state}
        x, last = self.form.regression_cell(q, k, log_decay, ridge, **how)
        return x, last

    def selective_scan(
        self, u: Array, dt: Array, A: Array, Bt: Array, Ct: Array, *, state: Array | None = None
    ) -> tuple[Array, Array]:
        """Run S_t[c] = exp(dt_t[c] A[c]) S_{t-1}[c] + dt_t[c] u_t[c] Bt_t, y_t[c] = S_t[c] . Ct_t.

        u and dt (B, S, C), dt >= 0; A (C, N), at most 0; Bt and Ct (B, S, N); state (B, C, N), None
        is zeros. Returns y (B, S, C) and S after the last position, float32, with exact gradients.
        """
        y, last = self.form.selective_scan(u, dt, A, Bt, Ct, state=state)
        return y, last

    def long_conv(self, x: Array, f: Array) -> Array:
        """Return y[b, t, c] = sum over j <= t of f[c, j] x[b, t - j, c]; x (B, S, C).

        f (C, J), J >= S; only the first S taps are used. Forms may use Fourier transforms, so the
        error of an entry is relative to the largest entry of its channel.
        """
        return self.form.long_conv(x, f)

    def head_norm_gate(self, h: Array, o: Array, w: Array, eps: float) -> Array:
        """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head.

        h (B, S, NH, DV), o (B, S, NH * DV), w (NH * DV,); result as o.
        """
        return self.form.head_norm_gate(h, o, w, eps=eps)

    def head_norm_skip_gate(
        self, h: Array, c: Array, z: Array, w: Array, skip: Array, eps: float
    ) -> Array:
        """Return (w * LayerNorm(h) + skip * c) * silu(z), normalised over DV within each head.

        h (B, S, NH, DV); c and z (B, S, NH * DV); w and skip (NH * DV,); result as z.
        """
        return self.form.head_norm_skip_gate(h, c, z, w, skip, eps=eps)

    def capped_cross_entropy(
        self, raw_logits: Array, labels: Array, cap: float | None
    ) -> tuple[Array, Array]:
        """Return the summed cross entropy in nats of the capped logits, and the number of labels.

        raw_logits (N, V), labels (N,) integer, -100 is ignored; with a cap of None the logits are
        not capped; both results are scalars.
        """
        nats, count = self.form.capped_cross_entropy(raw_logits, labels, cap=cap)
        return nats, count

    def linear_cross_entropy(
        self, x: Array, w: Array, labels: Array, cap: float | None
    ) -> tuple[Array, Array]:
        """Return `capped_cross_entropy` of the logits x w^T; x (N, d), w (V, d).

        Forms may compute logits and gradients a few rows at a time, so that the logits never exist
        as a whole.
        """
        nats, count = self.form.linear_cross_entropy(x, w, labels, cap=cap)
        return nats, count


def activation_name(name: str) -> str:
    """Return the name of an activation function, `silu` for `swish`.

    Raises:
        ConfigError: it is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation is {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return "silu" if name == "swish" else name
