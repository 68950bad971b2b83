"""The operators of models: what each promises, and its plain text.

A layer calls the methods of `Ops`. A form of the operators overrides some of them: a framework's
own functions (`reference/ops_torch.py`, `reference/ops_mlx.py`), native kernels (`native/`), Metal
kernels (`metal/`), float64 (`reference/ops_float64.py`). Cells are in `mlstm.py` and
`recurrences.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence

from mlxhog.errors import ConfigError
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.mlstm import MLSTMOps
from mlxhog.models.ops.recurrences import Recurrences

MAX_SUM_TERMS = 32_766
"""Most terms of a sum in a matrix product of torch on an Apple GPU, so most tokens of a gradient.

With more, MPS reads behind the operands on M1 and M2: in torch before 2.14, and in products of
batches of matrices later, too. Sources: pytorch issues 177116, 193487 and 195163.
"""

ACTIVATIONS = tuple("gelu gelu_tanh silu swish relu relu^2 sigmoid selu softplus".split())
"""Activation functions of `activate` and `glu`, by the names of the xlstm package.

`silu` and `swish` are the same. `gelu` is exact, x Phi(x), computed with erf; `gelu_tanh` is its
approximation with tanh. `softplus` is log(1 + e^x).
"""


class Ops(MLSTMOps, Recurrences, ABC):
    """The differentiable operators in which models are written, for arrays of one framework.

    Arrays are float32; only the matrices of `linears` and `block_diagonal` may be of another type.
    `xp` has the framework's array functions, see `arrays.py`.
    """

    activations: Mapping[str, Callable[[Array], Array]]  # by name; `silu` has no second one

    def in_bfloat16(
        self, params: dict[str, Array], products: Collection[str]
    ) -> tuple["Ops", dict[str, Array]]:
        """Return mixed precision: operators, and the parameters with those named in bfloat16."""
        return self, params | {name: self.xp.bfloat16(params[name]) for name in products}

    # -- what a framework has a function for ------------------------------------------------------

    @abstractmethod
    def rms_norm(self, x: Array, w: Array, eps: float) -> Array:
        """Return w * x / sqrt(mean(x^2) + eps) over the last axis; x (..., d), w (d,)."""

    @abstractmethod
    def rope(self, x: Array, base: float, offset: Array | None = None) -> Array:
        """Turn pair i of every head, elements i and DH / 2 + i, by t * base^(-2 i / DH).

        x (B, S, NH, DH), DH even; offset (B,) int32, the position t of the first, None is 0.
        Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
        """

    @abstractmethod
    def normalized(self, x: Array, eps: float, w: Array | None = None) -> Array:
        """Return LayerNorm(x) over the last axis, times w."""

    @abstractmethod
    def product(self, x: Array, w: Array) -> Array:
        """Return x W^T, computed in the type of w and returned in that of x."""

    def sum_of_products(self, a: Array, b: Array) -> Array:
        """Return a (..., M, K) times b (..., K, N), for a K of all positions of a batch."""
        return a @ b

    @abstractmethod
    def attend(self, q: Array, k: Array, v: Array, attn_mask: Array | None) -> Array:
        """Attend where `attn_mask` (..., S, L); None is causal with as many keys as queries."""

    # -- norms and gates --------------------------------------------------------------------------

    def layer_norm(self, x: Array, w: Array, eps: float) -> Array:
        """Return w * (x - mean(x)) / sqrt(var(x) + eps) over the last axis; x (..., d), w (d,).

        The variance is the biased one.
        """
        return self.normalized(x, eps, w)

    def head_norm(self, h: Array, w: Array, eps: float) -> Array:
        """Return w * LayerNorm(h), normalized over DH within each head.

        h (B, S, NH, DH), w (NH * DH,); result (B, S, NH * DH).
        """
        return w * self.normalized(h, eps).flatten(-2)

    def head_norm_gate(self, h: Array, o: Array, w: Array, eps: float) -> Array:
        """Return sigmoid(o) * (w * LayerNorm(h)), normalized over DV within each head.

        h (B, S, NH, DV), o (B, S, NH * DV), w (NH * DV,); result as o.
        """
        return self.xp.sigmoid(o) * (w * self.normalized(h, eps).reshape(o.shape))

    def head_norm_skip_gate(
        self, h: Array, c: Array, z: Array, w: Array, skip: Array, eps: float
    ) -> Array:
        """Return (w * LayerNorm(h) + skip * c) * silu(z), normalized over DV within each head.

        h (B, S, NH, DV); c and z (B, S, NH * DV); w and skip (NH * DV,); result as z.
        """
        normed = self.normalized(h, eps).reshape(z.shape)
        return (w * normed + skip * c) * self.activations["silu"](z)

    def activate(self, x: Array, activation: str) -> Array:
        """Return act(x); `activation` is one of `ACTIVATIONS`.

        Raises:
            ConfigError: there is no such activation.
        """
        return self.activations[activation_name(activation)](x)

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        """Return act(gate) * up; both of one shape. Errors as of `activate`."""
        return self.activations[activation_name(activation)](gate) * up

    def swiglu(self, gate: Array, up: Array) -> Array:
        """Return silu(gate) * up; both of one shape."""
        return self.activations["silu"](gate) * up

    def soft_cap(self, x: Array, cap: float) -> Array:
        """Return cap * tanh(x / cap)."""
        return cap * self.xp.tanh(x / cap)

    # -- linear maps ------------------------------------------------------------------------------

    def linears(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None] | None = None
    ) -> Sequence[Array]:
        """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in).

        Each product is computed in the type of its weight, which may be bfloat16, and returned in
        the type of x; the same holds for `block_diagonal`.
        """
        return _biased([self.product(x, w) for w in weights], biases)

    def block_diagonal(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None] | None = None
    ) -> Sequence[Array]:
        """Return x W^T + b of block-diagonal matrices, each given by its G diagonal blocks.

        x (..., in), every weight (G, out / G, in / G), every bias (out,) or None: result
        (..., out), whose slice g is slice g of x mapped by weight[g].
        """
        outs = []
        for w in weights:
            slices = self.xp.astype(x, w).reshape(-1, w.shape[0], w.shape[2]).swapaxes(0, 1)
            y = self.xp.linear(slices, w).swapaxes(0, 1).reshape(*x.shape[:-1], -1)
            outs.append(self.xp.astype(y, x))
        return _biased(outs, biases)

    # -- along the sequence -----------------------------------------------------------------------

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
            y (B, S, C), and the state after the last position: the last K - 1 inputs, of which
            those of earlier documents are zero.
        """
        xp, (B, S, C), K = self.xp, x.shape, w.shape[-1]
        past = xp.zeros((B, K - 1, C), like=x) if state is None else state
        inputs = xp.concatenate([past, x], 1)  # position t is at t + K - 1
        taps = [inputs[:, j : j + S] for j in range(K)]
        if starts is not None:
            back = self.positions_back(starts, K)[..., None]
            taps = [xp.where(back >= K - 1 - j, tap, 0.0) for j, tap in enumerate(taps)]
        y = self.zeros_if_none(b, w[:, 0, 0])
        for j, tap in enumerate(taps):
            y = y + w[:, 0, j] * tap
        y = self.activations["silu"](y) if silu else y
        return y, self.last_inputs(inputs[:, S:], starts)

    def zeros_if_none(self, b: Array | None, like: Array) -> Array:
        """Return b, or zeros like an array."""
        return self.xp.zeros_like(like) if b is None else b

    def positions_back(self, starts: Array, K: int) -> Array:
        """Return the number of earlier positions that each sees, at most K - 1; (B, S) int32."""
        xp, S = self.xp, starts.shape[1]
        document = xp.pad(xp.cumsum(xp.int32(starts), 1), [(0, 0), (K - 1, 0)])
        of_output = document[:, K - 1 :]
        back = xp.zeros_like(of_output)
        for j in range(K - 1):
            back = back + (document[:, j : j + S] == of_output)
        return xp.int32(back)

    def last_inputs(self, inputs: Array, starts: Array | None) -> Array:
        """Return the last K - 1 inputs (B, K - 1, C), those of earlier documents as zeros."""
        if starts is None:
            return inputs
        xp, entries = self.xp, inputs.shape[1]
        document = xp.pad(xp.cumsum(xp.int32(starts), 1), [(0, 0), (entries, 0)])
        of_entry = document[:, document.shape[1] - entries :]
        return xp.where((of_entry == document[:, -1:])[..., None], inputs, 0.0)

    def long_conv(self, x: Array, f: Array) -> Array:
        """Return y[b, t, c] = sum over j <= t of f[c, j] x[b, t - j, c]; x (B, S, C).

        f (C, J), J >= S; only the first S taps are used. Forms may use Fourier transforms, so the
        error of an entry is relative to the largest entry of its channel.
        """
        xp, S = self.xp, x.shape[1]
        n = 1 << (2 * S - 1).bit_length()
        spectrum = xp.rfft(f[:, :S].T, n, 0)
        return xp.irfft(xp.rfft(x, n, 1) * spectrum, n, 1)[:, :S]

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
        if window is not None and window >= k.shape[1] - 1:
            window = None
        S, L = q.shape[1], k.shape[1]
        if S == L and lengths is None:
            if window is None:
                return self.attend(q, k, v, None)
            if S > 2 * window:
                return self._attend_in_blocks(q, k, v, window)
        key = self.xp.arange(0, L, like=q)
        query = key[L - S :, None]
        attn_mask = key <= query
        if window is not None:
            attn_mask = attn_mask & (key >= query - window)
        if lengths is not None:
            attn_mask = attn_mask & (key >= L - lengths[:, None])[:, None, None]
        return self.attend(q, k, v, attn_mask)

    def _attend_in_blocks(self, q: Array, k: Array, v: Array, window: int) -> Array:
        """Attend block by block to the same block and the one before, in time that grows as S."""
        xp, W = self.xp, max(window, 1)
        B, S, NH, DH = q.shape
        NC = -(-S // W)
        rest = [(0, 0), (0, NC * W - S), (0, 0), (0, 0)]
        q, k, v = (xp.pad(x, rest).reshape(B, NC, W, NH, DH) for x in (q, k, v))
        before = [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)]
        k, v = (xp.concatenate([xp.pad(x, before)[:, :-1], x], 2) for x in (k, v))
        key = xp.arange(-W, W, like=q)
        query = xp.arange(0, W, like=q)[:, None]
        attn_mask = (key <= query) & (key >= query - window)
        in_sequence = (xp.arange(0, NC, like=q) > 0)[:, None, None] | (key >= 0)
        attn_mask = xp.tile(attn_mask & in_sequence, (B, 1, 1))[:, None]
        h = self.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask)
        return h.reshape(B, NC * W, NH, DH)[:, :S]

    # -- the loss ---------------------------------------------------------------------------------

    def capped_cross_entropy(
        self, raw_logits: Array, labels: Array, cap: float | None,
        log_inclusion: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return the summed cross entropy in nats of the capped logits, and the number of labels.

        raw_logits (N, V), labels (N,) integer, -100 is ignored; with a cap of None the logits are
        not capped; log_inclusion (V,) is subtracted after the cap, without a gradient; None is
        zeros. Both results are scalars.
        """
        xp, logits = self.xp, raw_logits if cap is None else self.soft_cap(raw_logits, cap)
        if log_inclusion is not None:
            logits, cap = logits - log_inclusion, None
        scored = labels != -100
        target = xp.where(scored, labels, 0)[:, None]
        total = self.log_total(logits, cap)
        nats = total - xp.take_along_axis(logits, target, -1)[:, 0]
        return (nats * scored).sum(), scored.sum()

    def log_total(self, logits: Array, cap: float | None) -> Array:
        """Return log(sum(e^logits)) over the last axis; no logit is beyond the cap."""
        return self.xp.logsumexp(logits, -1)

    def linear_cross_entropy(
        self, x: Array, w: Array, labels: Array, cap: float | None,
        log_inclusion: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return `capped_cross_entropy` of the logits x w^T; x (N, d), w (V, d).

        Forms may compute logits and gradients a few rows at a time, so that the logits never exist
        as a whole.
        """
        return self.capped_cross_entropy(self.linears(x, [w])[0], labels, cap, log_inclusion)


def activation_name(name: str) -> str:
    """Return the name of an activation function, `silu` for `swish`.

    Raises:
        ConfigError: it is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation is {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return "silu" if name == "swish" else name


def _biased(ys: Sequence[Array], biases: Sequence[Array | None] | None) -> Sequence[Array]:
    pairs = zip(ys, biases or [None] * len(ys), strict=True)
    return [y if b is None else y + b for y, b in pairs]
