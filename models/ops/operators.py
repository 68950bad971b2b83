"""The operators of models: the contract of each, and its eager implementation.

A layer calls the methods of `Ops`. Other implementations override some of them: the framework's
own functions (`eager/ops_torch.py`, `eager/ops_mlx.py`), native kernels (`native/`), Metal kernels
(`metal/`), float64 (`eager/ops_float64.py`). Cells are in `mlstm.py` and `recurrences.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import cast

from mlxhog.errors import ConfigError
from mlxhog.models.ops.arrays import Array, MatmulWeight
from mlxhog.models.ops.frozen import FrozenWeight
from mlxhog.models.ops.mixed import MixedOps
from mlxhog.models.ops.mlstm import MLSTMOps
from mlxhog.models.ops.recurrences import Recurrences

MAX_SUM_TERMS = 32_766
"""Largest inner dimension of a matmul of torch on an Apple GPU, so most tokens of a gradient.

Above it MPS reads past the operands on M1 and M2: in torch before 2.14, and in batched matmuls
later, too. Sources: pytorch issues 177116, 193487 and 195163.
"""

MIN_LOSS_ROWS = 512
"""Fewest tokens of a chunk of a loss: each adds to the gradient of the whole head."""

ACTIVATIONS = tuple("gelu gelu_tanh silu swish relu relu^2 sigmoid selu softplus".split())
"""Activation functions of `activate` and `glu`, by the names of the xlstm package.

`silu` and `swish` are the same. `gelu` is exact, x Phi(x); `gelu_tanh` is its approximation with
tanh. `softplus` is log(1 + e^x).
"""


class Ops(MLSTMOps, Recurrences, ABC):
    """The differentiable operators in which models are written, for arrays of one framework.

    Arrays are float32; only the weights of `linears` and `block_diagonal` may have another dtype,
    and with `autocast` those that `mixed.py` names.
    `xp` has the framework's array functions, see `arrays.py`.
    """

    activations: Mapping[str, Callable[[Array], Array]]  # by name; `silu` has no second one
    evaluates = False  # whether operators of a lazy framework compute when they are called
    max_logits = 1 << 24
    """Most logits of a chunk of a loss, if those are of `MIN_LOSS_ROWS` tokens or more."""

    def autocast(
        self, params: dict[str, Array], matmul_weights: Collection[str]
    ) -> tuple["Ops", dict[str, Array]]:
        """Return operators and parameters of mixed precision, see `mixed.py`."""
        weights = {name: MatmulWeight(params[name]) for name in matmul_weights}
        return self._mixed(), params | weights

    takes_bf16: frozenset[str] = frozenset()
    """Operators that take arrays of bfloat16 themselves, among those that round their results."""

    def _mixed(self) -> "Ops":
        return cast(Ops, MixedOps(self))

    def keeping_bf16(self) -> "Ops":
        """Return the operators for a layer with `Layer.keeps_bf16`."""
        return self

    def unread(self) -> "Ops":
        """Return the operators for linear layers whose gradients are used, but not the results."""
        return self

    def bfloat16(self, x: Array) -> Array:
        """Return x rounded to bfloat16, in the type in which this implementation keeps it."""
        return self.xp.bfloat16(x)

    # -- what a framework has a function for ------------------------------------------------------

    @abstractmethod
    def rms_norm(self, x: Array, w: Array, eps: float) -> Array:
        """Return w * x / sqrt(mean(x^2) + eps) over the last axis; x (..., d), w (d,)."""

    @abstractmethod
    def rope(self, x: Array, base: float, offset: Array | None = None) -> Array:
        """Rotate pair i of every head, elements i and DH / 2 + i, by t * base^(-2 i / DH).

        x (B, S, NH, DH), DH even; offset (B,) int32, the position t of the first, None is 0.
        Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
        """

    @abstractmethod
    def layer_norm(self, x: Array, w: Array | None, eps: float) -> Array:
        """Return w * (x - mean(x)) / sqrt(var(x) + eps) over the last axis; x (..., d), w (d,).

        The variance is the biased one; None is ones (eager implementations only).
        """

    @abstractmethod
    def linear(self, x: Array, w: Array) -> Array:
        """Return x W^T, computed in the dtype of w and returned in that of x."""

    def matmul(self, a: Array, b: Array) -> Array:
        """Return a (..., M, K) times b (..., K, N), of any K and N, see `MAX_SUM_TERMS`."""
        return a @ b

    @abstractmethod
    def attend(self, q: Array, k: Array, v: Array, attn_mask: Array | None) -> Array:
        """Attend where `attn_mask` (..., S, L); None is causal with as many keys as queries."""

    # -- norms and gates --------------------------------------------------------------------------

    def head_norm(self, h: Array, w: Array, eps: float) -> Array:
        """Return w * LayerNorm(h), normalized over DH within each head.

        h (B, S, NH, DH), w (NH * DH,); result (B, S, NH * DH).
        """
        return w * self.layer_norm(h, None, eps).flatten(-2)

    def head_norm_gate(self, h: Array, o: Array, w: Array, eps: float) -> Array:
        """Return sigmoid(o) * (w * LayerNorm(h)), normalized over DV within each head.

        h (B, S, NH, DV), o (B, S, NH * DV), w (NH * DV,); result as o.
        """
        return self.xp.sigmoid(o) * (w * self.layer_norm(h, None, eps).reshape(o.shape))

    def head_norm_skip_gate(
        self, h: Array, c: Array, z: Array, w: Array, skip: Array, eps: float
    ) -> Array:
        """Return (w * LayerNorm(h) + skip * c) * silu(z), normalized over DV within each head.

        h (B, S, NH, DV); c and z (B, S, NH * DV); w and skip (NH * DV,); result as z.
        """
        normed = self.layer_norm(h, None, eps).reshape(z.shape)
        return (w * normed + skip * c) * self.activations["silu"](z)

    def activate(self, x: Array, activation: str) -> Array:
        """Return act(x); `activation` is one of `ACTIVATIONS`, else a ConfigError."""
        return self.activations[activation_name(activation)](x)

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        """Return act(gate) * up; both of one shape."""
        return self.activations[activation_name(activation)](gate) * up

    def swiglu(self, gate: Array, up: Array) -> Array:
        """Return silu(gate) * up; both of one shape."""
        return self.activations["silu"](gate) * up

    def soft_cap(self, x: Array, cap: float) -> Array:
        """Return cap * tanh(x / cap)."""
        return cap * self.xp.tanh(x / cap)

    # -- linear layers ----------------------------------------------------------------------------

    def linears(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None] | None = None
    ) -> Sequence[Array]:
        """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in).

        Each matmul is computed in the dtype of its weight, which may be bfloat16, and returned in
        that of x; with a `MatmulWeight` as in `mixed.py`. The same holds for `block_diagonal`. With
        a `FrozenWeight` it is computed in the dtype of x, and has no gradient in the weight.
        """
        places = [place for place, w in enumerate(weights) if is_frozen(w)]
        if not places:
            return self.dense_linears(x, weights, biases)
        frozen = self.frozen_linears(x, [weights[place] for place in places])
        ys = dict(zip(places, frozen, strict=True))
        for place, b in enumerate(biases or ()):
            if b is not None and place in ys:
                ys[place] = ys[place] + b
        if rest := [place for place in range(len(weights)) if place not in ys]:
            own = [None if biases is None else biases[place] for place in rest]
            dense = self.dense_linears(x, [weights[place] for place in rest], own)
            ys |= dict(zip(rest, dense, strict=True))
        return [ys[place] for place in range(len(weights))]

    def dense_linears(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None] | None = None
    ) -> Sequence[Array]:
        """Return `linears` of weights of which none is frozen."""
        return _biased([self.linear(x, w) for w in weights], biases)

    def frozen_linears(self, x: Array, weights: Sequence[FrozenWeight]) -> Sequence[Array]:
        """Return x W^T of frozen weights, see `frozen.py`."""

        def forward(x: Array) -> tuple[list[Array], tuple[()]]:
            return [self._by_pieces(self.frozen_product, x, w) for w in weights], ()

        def backward(_: object, d_results: Sequence[Array | None], __: object) -> list[Array]:
            dx: Array = None
            for w, dy in zip(weights, d_results, strict=True):
                if dy is None:
                    continue
                for rows, piece in w.pieces():
                    own = dy[..., rows]
                    after = [own] if dx is None else [own, dx]  # one piece at a time
                    more = self.frozen_product_grad(own, self._after(piece, after))
                    dx = more if dx is None else dx + more
            return [dx]

        ys: Sequence[Array] = self.xp.custom_op(forward, backward, x)
        return ys

    def _by_pieces(self, product: Callable[..., Array], x: Array, w: FrozenWeight) -> Array:
        ys = list[Array]()
        for _, piece in w.pieces():
            ys.append(product(x, self._after(piece, [x, *ys[-1:]])))
        return ys[0] if len(ys) == 1 else self.xp.concatenate(ys, -1)

    def _after(self, w: FrozenWeight, others: Sequence[Array]) -> FrozenWeight:
        """Return a weight that a lazy graph does not dequantize before it has these arrays."""
        return w if w.on_host else w.on(lambda part: self.xp.depends(part, others))

    def frozen_product(self, x: Array, w: FrozenWeight) -> Array:
        """Return x W^T of a few rows of a frozen weight."""
        return self.linear(x, self.xp.dequantize(w, x))

    def frozen_product_grad(self, dy: Array, w: FrozenWeight) -> Array:
        """Return dy W, the gradient of x."""
        return self.matmul(dy, self.xp.dequantize(w, dy))

    def logits(self, x: Array, w: Array, b: Array | None) -> Array:
        """Return x W^T + b of the head."""
        return self.linears(x, [w], [b])[0]

    def block_diagonal(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None] | None = None
    ) -> Sequence[Array]:
        """Return x W^T + b of block-diagonal matrices, each given by its G diagonal blocks.

        x (..., in), every weight (G, out / G, in / G), every bias (out,) or None: result
        (..., out), whose slice g is slice g of x times weight[g]^T.
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
        reset_mask: Array | None = None, silu: bool,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Depthwise causal convolution, y[t] = b + sum_j w[j] x[t - (K - 1) + j] in each channel.

        x (B, S, C); w (C, 1, K), K >= 1, whose last entry is for the position itself; b (C,), None
        is zeros; state (B, K - 1, C), the inputs before the first position, None is zeros;
        reset_mask (B, S) bool, true at the first token of each document, which has no inputs of
        earlier documents. With `silu` the result is silu(y).

        Returns:
            y (B, S, C), and the state after the last position: the last K - 1 inputs, of which
            those of earlier documents are zero.
        """
        xp, (B, S, C), K = self.xp, x.shape, w.shape[-1]
        past = xp.zeros((B, K - 1, C), like=x) if state is None else state
        inputs = xp.concatenate([past, x], 1)  # position t is at t + K - 1
        shifted = [inputs[:, j : j + S] for j in range(K)]
        if reset_mask is not None:
            back = self.positions_back(reset_mask, K)[..., None]
            shifted = [xp.where(back >= K - 1 - j, x_j, 0.0) for j, x_j in enumerate(shifted)]
        y = self.zeros_if_none(b, w[:, 0, 0])
        for j, x_j in enumerate(shifted):
            y = y + w[:, 0, j] * x_j
        y = self.activations["silu"](y) if silu else y
        return y, self.last_inputs(inputs[:, S:], reset_mask)

    def zeros_if_none(self, b: Array | None, like: Array) -> Array:
        """Return b, or zeros like an array."""
        return self.xp.zeros_like(like) if b is None else b

    def positions_back(self, reset_mask: Array, K: int) -> Array:
        """Return the earlier positions in each one's own document, at most K - 1; (B, S) int32."""
        xp, S = self.xp, reset_mask.shape[1]
        document = xp.pad(xp.cumsum(xp.int32(reset_mask), 1), [(0, 0), (K - 1, 0)])
        of_output = document[:, K - 1 :]
        back = xp.zeros_like(of_output)
        for j in range(K - 1):
            back = back + (document[:, j : j + S] == of_output)
        return xp.int32(back)

    def last_inputs(self, inputs: Array, reset_mask: Array | None) -> Array:
        """Return the last K - 1 inputs (B, K - 1, C), those of earlier documents as zeros."""
        if reset_mask is None:
            return inputs
        xp, entries = self.xp, inputs.shape[1]
        document = xp.pad(xp.cumsum(xp.int32(reset_mask), 1), [(0, 0), (entries, 0)])
        of_entry = document[:, document.shape[1] - entries :]
        return xp.where((of_entry == document[:, -1:])[..., None], inputs, 0.0)

    def long_conv(self, x: Array, f: Array) -> Array:
        """Return y[b, t, c] = sum over j <= t of f[c, j] x[b, t - j, c]; x (B, S, C).

        f (C, J), J >= S, of which the first S entries are used. Implementations may use Fourier
        transforms, so the error of an entry is relative to the largest entry of its channel.
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
        queries' positions. A query attends to `window` positions before its own, None is all.
        lengths (B,) int32, S to L, is the number of a row's last keys that are used; those before
        them are padding; None is L.
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
        """Attend block by block to the same block and the one before, in time linear in S."""
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
        """Return logsumexp of the logits over the last axis; none is beyond the cap."""
        return self.xp.logsumexp(logits, -1)

    def linear_cross_entropy(
        self, x: Array, w: Array, labels: Array, cap: float | None,
        log_inclusion: Array | None = None, bias: Array | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return `capped_cross_entropy` of the logits x w^T + b; x (N, d), w (V, d), bias (V,).

        The logits of all tokens never exist at once: they are computed in chunks of tokens. If
        there are several, a forward pass before a gradient computes the gradient with them, as
        Liger-Kernel does (Hsu et al. 2024, arXiv:2410.10989), and saves nothing else.
        """
        xp, rows = self.xp, loss_rows(len(w), self.max_logits)
        constant, inputs = {"w": w}, {"x": x} | ({} if bias is None else {"b": bias})
        if not is_frozen(w):
            constant, inputs = {}, inputs | constant
        wanted = [name for name, y in inputs.items() if xp.needs_gradient([y])]

        def loss(p: Mapping[str, Array], labels: Array) -> tuple[Array, Array]:
            p = {**constant, **p}
            logits = self.linears(p["x"], [p["w"]], [p.get("b")])[0]
            return self.capped_cross_entropy(logits, labels, cap, log_inclusion)

        if len(x) <= rows:
            return loss(inputs, labels)

        def forward(*arrays: Array) -> tuple[tuple[Array], list[Array]]:
            nats, dx, sums, done = 0.0, list[Array](), dict[str, Array](), list[Array]()
            for first in range(0, x.shape[0], rows):
                cut, p = slice(first, first + rows), dict(zip(inputs, arrays, strict=True))
                p["x"] = xp.depends(p["x"][cut], done)  # one chunk at a time in a lazy graph
                if wanted:
                    nats_of = partial(lambda p, y, own: loss(p | own, y)[0], p, labels[cut])
                    own, grads = xp.value_and_grad(nats_of, {name: p[name] for name in wanted})
                else:
                    own, grads = loss(p, labels[cut])[0], {}
                nats = nats + xp.stop_gradient(own)
                for name, grad in grads.items():
                    if name == "x":
                        dx.append(grad)
                    elif first == 0:
                        sums[name] = xp.float32(grad)
                    else:
                        sums[name] += grad  # in place in PyTorch
                done = [nats, *dx[-1:], *sums.values()]
            saved = ([xp.concatenate(dx)] if dx else []) + list(sums.values())
            return (xp.depends(nats, saved),), saved

        def backward(
            saved: Sequence[Array], d_nats: Sequence[Array], _: Sequence[bool]
        ) -> list[Array | None]:
            grads = dict(zip(wanted, saved, strict=True))
            return [
                xp.astype(grads[name] * d_nats[0], y) if name in grads else None
                for name, y in inputs.items()
            ]

        (nats,) = xp.custom_op(forward, backward, *inputs.values())
        return nats, (labels != -100).sum()


def is_frozen(w: Array | FrozenWeight | MatmulWeight) -> bool:
    """Whether a weight is a frozen one."""
    return isinstance(w.array if isinstance(w, MatmulWeight) else w, FrozenWeight)


def loss_rows(V: int, max_logits: int = Ops.max_logits) -> int:
    """Return the tokens of a chunk of a loss over V tokens of vocabulary."""
    return max(MIN_LOSS_ROWS, max_logits // max(1, V))


def activation_name(name: str) -> str:
    """Return the name of an activation, `silu` for `swish`; a ConfigError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation is {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return "silu" if name == "swish" else name


def _biased(ys: Sequence[Array], biases: Sequence[Array | None] | None) -> Sequence[Array]:
    pairs = zip(ys, biases or [None] * len(ys), strict=True)
    return [y if b is None else y + b for y, b in pairs]
