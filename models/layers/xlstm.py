"""The layers of xLSTM: of a MAD candidate, of the first paper (v1), and of xLSTM Large.

mLSTM cell of one head, with s = DK^-1/2 and the state C (DK, DV), n (DK), m, zero at the start:

    m' = max(logsig(f) + m, i)       F = exp(logsig(f) + m - m')       I = exp(i - m')
    C = F C + I k v^T                n = F n + I k                     m = m'
    h = s C^T q / ( max(|s n.q|, exp(-m)) + eps )

which equals the parallel form with L[t, j] = sum_{j < r <= t} logsig(f_r) + i_j in its exponents.
sLSTM cell of one head, sequential, with the state h, c, n, m (DH each), zero at the start:

    i~ = i + Ri h + bi,  and so f~, z~, o~                     R is block-diagonal over heads
    m' = max(logsig(f~) + m, i~), or i~ where n is 0           I = exp(i~ - m')
    F = exp(logsig(f~) + m - m')
    c = F c + I tanh(z~)     n = F n + I     m = m'     h = sigmoid(o~) c / n

The published code tests whether all of n is 0. A test per element gives the same for every state
that the cell reaches, and rows of a batch stay independent.

LN_head is the layer norm within each head; conv is depthwise and causal. "Small" initial normals
have the std sqrt(2 / 5d), those into the residual stream 2 / (blocks sqrt(d)), d the model's width.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6 (NX-AI/xlstm); Beck
et al. 2025, xLSTM 7B, arXiv:2503.13427; Grazzi et al. 2024, Unlocking state-tracking in linear RNNs
through negative eigenvalues, arXiv:2411.12537, for signs.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.models.layers.layer import (
    ForwardContext,
    Layer,
    Output,
    Params,
    Shapes,
    State,
    conv_params,
    linear_params,
    of_model,
)
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec, normal, small

CHUNK_SIZE = 64
CELL_EPS = 1e-6
V1_NORM_EPS = 1e-5
MIN_SIGNED_GATE = 1e-6
"""Twice the smallest absolute value of a signed forget gate."""

BIAS_INIT = {"small": "3.0:6.0", "powerlaw": "5.0:-7.0"}
"""First and last forget bias of a head."""


class _Cell(Layer):
    """A cell after a convolution: c = SiLU(conv(u)), or u itself if conv is 0."""

    conv_name = "conv"

    heads: int = 4  # NH
    conv: int = option(4, "kernel size of the convolution; 0: none", low=0)

    def convolved(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        """Return c (B, S, width), and the convolution's state."""
        if not self.conv:
            return x, ()
        c, last = ctx.conv(x, p, state[0], self.conv_name)
        return c, (last,)

    def with_conv(self, width: int, cell: Sequence[tuple[int, ...]]) -> Shapes:
        """Return the shapes of the state of a convolution and a cell."""
        return {**({"conv": [(self.conv - 1, width)]} if self.conv else {}), "cell": cell}


def mlstm_shapes(heads: int, qk: int, v: int) -> Sequence[tuple[int, ...]]:
    """Return the shapes of C, n and m; widths qk and v are over all heads."""
    return [(heads, qk // heads, v // heads), (heads, qk // heads), (heads,)]


def mlstm_gates(
    heads: int, inputs: int, names: Sequence[str], biases: Sequence[str]
) -> Iterable[ParamSpec]:
    """Declare the gates of an mLSTM cell, with zero weights."""
    for name, bias in zip(names, biases, strict=True):
        yield ParamSpec(f"{name}.weight", (heads, inputs), "zeros", decay=True)
        yield ParamSpec(f"{name}.bias", (heads,), bias)


# -- of a candidate: no initial value depends on the depth, which is not known ---------------------


class _CandidateCell(_Cell):
    def conv_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the convolution, if there is one."""
        if self.conv:
            yield from conv_params("conv", d, self.conv)
            yield ParamSpec("conv.bias", (d,), "zeros")

    def end_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare what follows the cell."""
        yield ParamSpec("head_norm.weight", (d,), "ones")
        yield from linear_params(d, out_proj=d)


class MLSTMCell(_CandidateCell):
    """mLSTM: a matrix-valued state with exponential gates.

        q = Wq c,  k = Wk c,  v = Wv u,  o = Wo u    each (B, S, d), heads of DH = d / NH
        i = Wi u + bi,  f = Wf u + bf                (B, S, NH)
        y = Wout( sigmoid(o) * LN_head(mLSTM(q, k, v, i, f)) )

    Forget biases begin at 3 to 6, spread over the heads; with `signed` at -3 to 3. Then F has the
    factor 2 sigmoid(f) - 1 in (-1, 1) in place of sigmoid(f): parity needs negative eigenvalues.
    The logarithm of its absolute value replaces logsig(f); its sign s_t is moved out of the
    recurrence,

        P_t = s_1 s_2 ... s_t        h_t = P_t mLSTM(q, P k, v, i, f)
    """

    name = "mlstm"
    keeps_bf16 = True
    chunk_size: ClassVar[int] = CHUNK_SIZE

    signed: bool = False  # whether the forget gate may be negative

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        forget = "linspace:-3.0:3.0" if self.signed else "linspace:3.0:6.0"
        yield from self.conv_spec(d)
        yield from linear_params(d, q_proj=d, k_proj=d, v_proj=d, ogate=d)
        yield from mlstm_gates(self.heads, d, ("igate", "fgate"), ("zeros", forget))
        yield from self.end_spec(d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return self.with_conv(d, mlstm_shapes(self.heads, d, d))

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp, heads = ctx.ops, ctx.ops.xp, (*x.shape[:2], self.heads, -1)
        c, inputs = self.convolved(p, x, state, ctx)
        q, k = ctx.linears(c, p, "q_proj", "k_proj", heads=self.heads)
        v, o, i, f = ctx.linears(x, p, "v_proj", "ogate", "igate", "fgate")
        if self.signed:  # f' with sigmoid(f') = |2 sigmoid(f) - 1|, and P (B, S, NH, 1)
            flips = xp.cumsum(xp.where(f < 0, xp.ones_like(f), xp.zeros_like(f)), 1)
            P, size = (1.0 - 2.0 * (flips % 2.0))[..., None], xp.abs(f)
            f = size + xp.log(xp.maximum(1.0 - xp.exp(-size), MIN_SIGNED_GATE) / 2)
            k = k * P
        how: dict[str, Any] = {
            "chunk_size": self.chunk_size,
            "eps": CELL_EPS,
            "reset_mask": ctx.reset_mask,
        }
        h, cell = ops.mlstm_cell(q, k, v.reshape(heads), i, f, state=state[-3:], **how)
        if self.signed:
            (C, n, m), last = cell, P[:, -1]
            h, cell = h * P, (C * last[..., None], n * last, m)
        y = ops.head_norm_gate(h, o, p["head_norm.weight"], ctx.norm_eps)
        return ctx.linear(y, p, "out_proj"), (*inputs, *cell)


class SLSTMCell(_CandidateCell):
    """sLSTM: a scalar state whose gates depend on its last output.

        y = Wout LN_head(sLSTM(Wi c, Wf c, Wz u, Wo u))

    Forget biases begin at 3 to 6, spread over the units of a head (`bias_init` small), or at 5 to
    -7 (powerlaw; the package's, with exponent 1); recurrent matrices begin at 0 (`recurrent_init`
    zeros) or uniform within DH^-1/2.
    """

    name = "slstm"
    unrolled = True

    conv: int = option(0, "kernel size of the convolution; 0: none", low=0)
    bias_init: str = option("small", "or powerlaw", choices=tuple(BIAS_INIT))
    recurrent_init: str = option("zeros", "or uniform", choices=("zeros", "uniform"))

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        NH, DH = self.heads, d // self.heads
        recurrent = f"uniform:{DH**-0.5!r}" if self.recurrent_init == "uniform" else "zeros"
        forget = f"slstm_linspace:{NH}:{BIAS_INIT[self.bias_init]}"
        yield from self.conv_spec(d)
        yield from linear_params(d, autocast=False, igate=d, fgate=d, zgate=d, ogate=d)
        yield ParamSpec("recurrent.weight", (NH, 4 * DH, DH), recurrent, decay=True)
        yield ParamSpec("recurrent.bias", (4 * d,), forget)
        yield from self.end_spec(d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return self.with_conv(d, [(self.heads, d // self.heads)] * 4)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        c, inputs = self.convolved(p, x, state, ctx)
        i, f = ctx.linears(c, p, "igate", "fgate", heads=self.heads)
        z, o = ctx.linears(x, p, "zgate", "ogate", heads=self.heads)
        R, b = p["recurrent.weight"], p["recurrent.bias"]
        h, cell = ctx.ops.slstm_cell(i, f, z, o, R, b, state=state[-4:], reset_mask=ctx.reset_mask)
        y = ctx.ops.head_norm(h, p["head_norm.weight"], ctx.norm_eps)
        return ctx.linear(y, p, "out_proj"), (*inputs, *cell)


# -- of the first paper ----------------------------------------------------------------------------


class _V1Cell(_Cell):
    """The base of both mixers of the first paper.

    Names and layouts of parameters are those of the xlstm package on the CPU; the scale of LN_head
    is 1 + weight. Block-diagonal weights BD have one block per head of the sLSTM, or per
    `qkv_block` channels of the mLSTM. Dropout is applied to the result of each mLSTM and
    feed-forward layer, and to the h of each sLSTM before its norm.
    """

    inside = "xlstm"
    conv_name = "conv1d.conv"

    def check(self, d: int) -> None:
        super().check(d)
        if self.conv == 1:
            raise ConfigError("conv is 1; set it to 2 or more")

    def diagonals(self, p: Params, x: Array, ctx: ForwardContext, *names: str) -> tuple[Array, ...]:
        """Return the block-diagonal linear layers `names` of x."""
        weights = [p[f"{name}.weight"] for name in names]
        ys = ctx.ops.block_diagonal(x, weights, [p.get(f"{name}.bias") for name in names])
        return tuple(ys)


def diagonal(name: str, width: int, groups: int, init: str, *, autocast: bool) -> ParamSpec:
    """Declare a block-diagonal weight of `groups` blocks."""
    shape = (groups, width // groups, width // groups)
    return ParamSpec(f"{name}.weight", shape, init, decay=True, autocast=autocast)


class MLSTMV1(_V1Cell):
    """mLSTM of the first xLSTM paper, inside an up-projection.

    [a; z] = Wup u                               (B, S, I) each, NH heads of DK = DV = I / NH
    c = silu(conv(a))
    q = BDq c,  k = BDk c,  v = BDv a            v from a, not c
    i = Wi [q; k; v] + bi,  f = Wf [q; k; v] + bf
    y = Wdown( (LN_head(mLSTM(q, k, v, i, f)) + skip * c) * silu(z) )
    """

    name = "mlstm-v1"
    keeps_bf16 = True

    conv: int = 4
    qkv_block: int = 4  # block size of the block-diagonal q, k and v
    chunk_size: int = of_model(CHUNK_SIZE)
    inner: int | None = of_model(None)  # I; None: twice the width, a multiple of 64
    bias: bool = of_model(False)
    residual: str = of_model("")  # initializer of Wdown; "" is the small one

    def heads_width(self, d: int) -> int:
        """Return the width of the cell over all heads, I."""
        return 64 * -(-2 * d // 64) if self.inner is None else self.inner

    def check(self, d: int) -> None:
        super().check(d)
        groups = (width := self.heads_width(d)) // self.qkv_block
        if not groups or width % groups:
            raise ConfigError(
                f"the inner width {width} does not divide into blocks of qkv_block "
                f"{self.qkv_block}; set that to a divisor, such as 4"
            )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        I, begin = self.heads_width(d), small(d)  # noqa: E741  the paper's letter
        yield from linear_params(d, init=begin, bias=self.bias, proj_up=2 * I)
        yield from conv_params("conv1d.conv", I, self.conv, bias=True)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield diagonal(name, I, I // self.qkv_block, begin, autocast=True)
            if self.bias:
                yield ParamSpec(f"{name}.bias", (I,), "zeros")
        gates, biases = ("mlstm_cell.igate", "mlstm_cell.fgate"), (normal(0.1), "linspace:3.0:6.0")
        yield from mlstm_gates(self.heads, 3 * I, gates, biases)
        yield ParamSpec("mlstm_cell.outnorm.weight", (I,), "zeros")
        yield ParamSpec("learnable_skip", (I,), "ones")
        yield from linear_params(I, init=self.residual or begin, bias=self.bias, proj_down=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        width = self.heads_width(d)
        return self.with_conv(width, mlstm_shapes(self.heads, width, width))

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, heads = ctx.ops, (*x.shape[:2], self.heads, -1)
        a, z = ctx.halves(x, p, "proj_up")
        c, inputs = self.convolved(p, a, state, ctx)
        q, k = self.diagonals(p, c, ctx, "q_proj", "k_proj")
        (v,) = self.diagonals(p, a, ctx, "v_proj")
        gates = ("mlstm_cell.igate", "mlstm_cell.fgate")
        i, f = ctx.linears(ops.xp.concatenate([q, k, v], -1), p, *gates)
        q, k, v = (y.reshape(heads) for y in (q, k, v))
        how: dict[str, Any] = {"chunk_size": self.chunk_size, "eps": CELL_EPS}
        h, cell = ops.mlstm_cell(q, k, v, i, f, state=state[1:], reset_mask=ctx.reset_mask, **how)
        w, skip = 1.0 + p["mlstm_cell.outnorm.weight"], p["learnable_skip"]
        y = ops.head_norm_skip_gate(h, c, z, w, skip, V1_NORM_EPS)
        return ctx.drop(ctx.linear(y, p, "proj_down")), (*inputs, *cell)


class SLSTMV1(_V1Cell):
    """sLSTM of the first xLSTM paper; `conv` is 0 for no convolution.

        c = silu(conv(u))                            u itself where conv is 0
        y = LN_head(sLSTM(BDi c, BDf c, BDz u, BDo u))

    In the package the weight named `fgate` is that of the input gate, BDi, and `igate` that of the
    forget gate, BDf (NX-AI/xlstm issue 98); the cell's own R and b have the rows i, f, z, o. In a
    candidate `geglu` is the feed-forward layer after it.
    """

    name = "slstm-v1"
    keeps_bf16 = True
    unrolled = True

    forget: str = of_model("slstm_linspace:{heads}:3.0:6.0")  # initializer of the cell's biases
    recurrent: str = of_model("zeros")
    norm_weight: bool = of_model(True)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        NH, DH = self.heads, d // self.heads
        if self.conv:
            yield from conv_params("conv1d.conv", d, self.conv, bias=True)
        for name in ("fgate", "igate", "zgate", "ogate"):
            yield diagonal(name, d, NH, small(d), autocast=False)
        yield ParamSpec("slstm_cell._recurrent_kernel_", (NH, 4 * DH, DH), self.recurrent)
        yield ParamSpec("slstm_cell._bias_", (4 * d,), self.forget.format(heads=NH))
        if self.norm_weight:
            yield ParamSpec("group_norm.weight", (d,), "zeros")

    def state_shapes(self, d: int, length: int) -> Shapes:
        return self.with_conv(d, [(self.heads, d // self.heads)] * 4)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        xp, heads = ctx.ops.xp, (*x.shape[:2], self.heads, -1)
        c, inputs = self.convolved(p, x, state, ctx)
        gates = self.diagonals(p, c, ctx, "fgate", "igate")  # swapped names, see above
        gates += self.diagonals(p, x, ctx, "zgate", "ogate")
        i, f, z, o = (y.reshape(heads) for y in gates)
        R, b = (p[f"slstm_cell._{name}_"] for name in ("recurrent_kernel", "bias"))
        h, cell = ctx.ops.slstm_cell(i, f, z, o, R, b, state=state[-4:], reset_mask=ctx.reset_mask)
        w = p.get("group_norm.weight")
        scale = xp.ones_like(x[0, 0]) if w is None else 1.0 + w
        y = ctx.ops.head_norm(ctx.drop(h), scale, V1_NORM_EPS)
        return y, (*inputs, *cell)


# -- of xLSTM Large --------------------------------------------------------------------------------


class LargeMLSTM(Layer):
    """mLSTM of xLSTM Large, with `qk` and `v` the widths over all heads.

        q = Wq u,  k = Wk u,  v = Wv u,  o = Wo u              per head DK, DK, DV, DV
        i = cap(Wi u + bi, 15),  f = cap(Wf u + bf, 15)        cap(x, c) = c tanh(x / c)
        y = Wout( sigmoid(o) * (LN_head(mLSTM(q, k, v, i, f)) * w) )

    Initial values are those of the training code of the papers (NX-AI/xlstm-jax): gate matrices
    zero, input-gate bias -10, forget-gate biases from 3 to 6; `residual` is that of Wout.
    """

    name = "mlstm-large"
    keeps_bf16 = True

    heads: int
    qk: int
    v: int
    bias: bool
    chunk_size: int
    eps: float
    gate_cap: float
    residual: str

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, init=small(d), bias=self.bias, q=self.qk, k=self.qk, v=self.v)
        yield from linear_params(d, init="zeros", bias=self.bias, ogate_preact=self.v)
        gates, biases = ("igate_preact", "fgate_preact"), ("constant:-10.0", "linspace:3.0:6.0")
        yield from mlstm_gates(self.heads, d, gates, biases)
        yield ParamSpec("multihead_norm.weight", (self.v,), "ones")
        if self.bias:
            yield ParamSpec("multihead_norm.bias", (self.v,), "zeros")
        yield from linear_params(self.v, init=self.residual, bias=self.bias, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return {"cell": mlstm_shapes(self.heads, self.qk, self.v)}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, heads = ctx.ops, (*x.shape[:2], self.heads, -1)
        gates = ("ogate_preact", "igate_preact", "fgate_preact")
        q, k, v, o, i, f = ctx.linears(x, p, "q", "k", "v", *gates)
        q, k, v = (y.reshape(heads) for y in (q, k, v))
        i, f = ops.soft_cap(i, self.gate_cap), ops.soft_cap(f, self.gate_cap)
        how: dict[str, Any] = {"chunk_size": self.chunk_size, "eps": self.eps}
        how["reset_mask"] = ctx.reset_mask
        h, state = ops.mlstm_cell(q, k, v, i, f, state=state, **how)
        y = ops.head_norm_gate(h, o, p["multihead_norm.weight"], ctx.norm_eps)
        if self.bias:
            y = y + ops.xp.sigmoid(ops.xp.float32(o)) * p["multihead_norm.bias"]
        return ctx.linear(y, p, "out_proj"), state
