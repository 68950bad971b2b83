"""The layers of the first xLSTM paper: mLSTM, sLSTM, and the feed-forward layer behind an sLSTM.

With K taps of a convolution, LN_head the layer norm within each head, its scale 1 + weight:

    mLSTM, of inner width I and NH heads of DK = DV = I / NH:
        [a; z] = Wup u                                         (B, S, I) each
        c = silu(conv(a))
        q = BDq c,  k = BDk c,  v = BDv a                      block-diagonal; v reads a, not c
        i = Wi [q; k; v] + bi,  f = Wf [q; k; v] + bf          (B, S, NH), without a cap
        y = Wdown( (LN_head(mLSTM(q, k, v, i, f)) + skip * c) * silu(z) )
    sLSTM, of NH heads of DH = d / NH:
        c = silu(conv(u))                                      u itself where K = 0
        y = LN_head(sLSTM(BDi c, BDf c, BDz u, BDo u))
    feed-forward layer, of width U:
        [g; p] = Wup u
        y = Wdown( act(g) * p )

conv is causal and depthwise: y[t] = b + sum_j w[j] * x[t - (K-1) + j]. A block-diagonal map has one
small matrix per group of neighbouring channels: heads of the sLSTM, `qkv_block` channels of the
mLSTM. The mLSTM cell is that of `xlstm_large.py`, with eps 1e-6. The sLSTM cell of one head, with
the state h, c, n, m (DH each), zero at the start:

    i~ = Gi + Ri h + bi,  and so f~, z~, o~
    m' = max(i~, logsig(f~) + m), or i~ where n is 0           I = exp(i~ - m')
    F = exp(logsig(f~) + m - m')
    c = F c + I tanh(z~)     n = F n + I     m = m'     h = sigmoid(o~) c / n

The published code tests whether all of n is 0. A test per element gives the same for every state
that the cell reaches, and rows of a batch stay independent.

Names and layouts of parameters are those of the xlstm package on the CPU. There the map stored as
`fgate` drives the input gate of an sLSTM, BDi, and the one stored as `igate` its forget gate, BDf
(NX-AI/xlstm issue 98); the cell's own R and b have the rows i, f, z, o as they should.

"Small" initial normals have the std sqrt(2 / 5d), those into the residual stream
2 / (blocks * sqrt(d)) with d the model's width, as in the package, or also sqrt(2 / 5d) in a
candidate, whose depth is not known; there forget biases begin at 3 to 6. Dropout, while training:
on the result of each mLSTM and feed-forward layer, and on the h of each sLSTM before its norm.

In a candidate an mLSTM has its cell at twice the width and needs no feed-forward layer; the layer
`geglu` is the one behind an sLSTM.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6 (NX-AI/xlstm).
"""

from collections.abc import Iterable
from typing import cast

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import (
    Layer,
    Params,
    Run,
    Shapes,
    State,
    bound,
    linear_map,
    normal,
    small_std,
)
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec

NORM_EPS = 1e-5
CELL_EPS = 1e-6


class _V1Layer(Layer):
    """Heads of the cell and taps of the convolution of both mixers."""

    prefix = "xlstm."  # of the names of parameters; in the package it belongs to the block
    chunk_size = 64

    heads: int = 4
    conv: int = 4

    def conv_spec(self, channels: int) -> Iterable[ParamSpec]:
        """Declare the convolution."""
        name, start = f"{self.prefix}conv1d.conv", bound(self.conv)
        yield ParamSpec(f"{name}.weight", (channels, 1, self.conv), start, decay=True)
        yield ParamSpec(f"{name}.bias", (channels,), start)

    def convolved(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, Array]:
        """Return the convolution of x (B, S, C) through silu, and the inputs the next one needs."""
        w, b = (p[f"{self.prefix}conv1d.conv.{part}"] for part in ("weight", "bias"))
        return run.ops.causal_conv(x, w, b, state=state[0], starts=run.starts, silu=True)

    def diagonals(self, p: Params, x: Array, run: Run, *names: str) -> tuple[Array, ...]:
        """Return the block-diagonal maps `names` of one x."""
        full = [self.prefix + name for name in names]
        biases = [p.get(f"{name}.bias") for name in full]
        return run.ops.block_diagonal(x, [p[f"{name}.weight"] for name in full], biases)


def diagonal(name: str, width: int, groups: int, init: str, *, product: bool) -> ParamSpec:
    """Declare a block-diagonal map of `groups` matrices."""
    shape = (groups, width // groups, width // groups)
    return ParamSpec(f"{name}.weight", shape, init, decay=True, product=product)


class MLSTMV1(_V1Layer):
    """mLSTM of the first xLSTM paper, inside an up-projection."""

    name = "mlstm-v1"
    inner = cast(int | None, None)  # I; None is twice the width, in whole 64s
    bias = False
    residual_std = cast(float | None, None)  # None is the small one

    qkv_block: int = 4  # channels of a group that q, k and v mix within

    def heads_width(self, d: int) -> int:
        """Return the width of the cell over all heads, I."""
        return 64 * -(-2 * d // 64) if self.inner is None else self.inner

    def check(self, d: int) -> None:
        super().check(d)
        I = self.heads_width(d)  # noqa: E741  the paper's letter
        groups = I // self.qkv_block
        if self.conv < 2:
            raise ConfigError(f"conv is {self.conv}; set it to 2 or more")
        if not groups or I % groups:
            raise ConfigError(
                f"the inner width {I} does not divide into blocks of qkv_block {self.qkv_block}; "
                "set that to a divisor, such as 4"
            )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        p, I, NH, small = self.prefix, self.heads_width(d), self.heads, normal(small_std(d))  # noqa: E741
        yield from linear_map(f"{p}proj_up", 2 * I, d, small, self.bias)
        yield from self.conv_spec(I)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield diagonal(p + name, I, I // self.qkv_block, small, product=True)
            if self.bias:
                yield ParamSpec(f"{p}{name}.bias", (I,), "zeros")
        for name, bias in (("igate", normal(0.1)), ("fgate", "linspace:3.0:6.0")):
            yield ParamSpec(f"{p}mlstm_cell.{name}.weight", (NH, 3 * I), "zeros", decay=True)
            yield ParamSpec(f"{p}mlstm_cell.{name}.bias", (NH,), bias)
        yield ParamSpec(f"{p}mlstm_cell.outnorm.weight", (I,), "zeros")
        yield ParamSpec(f"{p}learnable_skip", (I,), "ones")
        std = small if self.residual_std is None else normal(self.residual_std)
        yield from linear_map(f"{p}proj_down", d, I, std, self.bias)

    def state_shapes(self, d: int, length: int) -> Shapes:
        NH, I = self.heads, self.heads_width(d)  # noqa: E741
        DK = I // NH
        return {"conv": [(self.conv - 1, I)], "cell": [(NH, DK, DK), (NH, DK), (NH,)]}

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        own, heads = self.prefix, (*x.shape[:2], self.heads, -1)
        a, z = run.halves(x, p, f"{own}proj_up")
        c, inputs = self.convolved(p, a, state, run)
        q, k = self.diagonals(p, c, run, "q_proj", "k_proj")
        (v,) = self.diagonals(p, a, run, "v_proj")
        gates = (f"{own}mlstm_cell.igate", f"{own}mlstm_cell.fgate")
        i, f = run.linears(run.ops.xp.concatenate([q, k, v], -1), p, *gates)
        f = run.forget(f)
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        h, cell = run.ops.mlstm_cell(
            q, k, v, i, f, chunk_size=self.chunk_size, eps=CELL_EPS, state=state[1:]
        )
        w, skip = 1.0 + p[f"{own}mlstm_cell.outnorm.weight"], p[f"{own}learnable_skip"]
        y = run.ops.head_norm_skip_gate(h, c, z, w, skip, NORM_EPS)
        return run.drop(run.linear(y, p, f"{own}proj_down")), (inputs, *cell)


class SLSTMV1(_V1Layer):
    """sLSTM of the first xLSTM paper; `conv` is 0 for no convolution."""

    name = "slstm-v1"
    may_be_0 = ("conv",)
    forget = "slstm_linspace:{heads}:3.0:6.0"  # initialiser of the cell's biases
    recurrent = "zeros"
    norm_weight = True

    def check(self, d: int) -> None:
        super().check(d)
        if self.conv == 1:
            raise ConfigError("conv is 1; give 2 taps or more, or 0 for none")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        p, NH, DH = self.prefix, self.heads, d // self.heads
        if self.conv:
            yield from self.conv_spec(d)
        for name in ("fgate", "igate", "zgate", "ogate"):
            yield diagonal(p + name, d, NH, normal(small_std(d)), product=False)
        yield ParamSpec(f"{p}slstm_cell._recurrent_kernel_", (NH, 4 * DH, DH), self.recurrent)
        yield ParamSpec(f"{p}slstm_cell._bias_", (4 * d,), self.forget.format(heads=NH))
        if self.norm_weight:
            yield ParamSpec(f"{p}group_norm.weight", (d,), "zeros")

    def state_shapes(self, d: int, length: int) -> Shapes:
        inputs = {"conv": [(self.conv - 1, d)]} if self.conv else {}
        return {**inputs, "cell": [(self.heads, d // self.heads)] * 4}

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        own, heads = self.prefix, (*x.shape[:2], self.heads, -1)
        c, inputs = x, list[Array]()
        if self.conv:
            c, last = self.convolved(p, x, state, run)
            inputs.append(last)
        # The names of these two gates are swapped in the package, see above.
        i, f = self.diagonals(p, c, run, "fgate", "igate")
        z, o = self.diagonals(p, x, run, "zgate", "ogate")
        i, f, z, o = i.reshape(heads), f.reshape(heads), z.reshape(heads), o.reshape(heads)
        R, b = (p[f"{own}slstm_cell._{name}_"] for name in ("recurrent_kernel", "bias"))
        h, cell = run.ops.slstm_cell(i, f, z, o, R, b, state=state[-4:], starts=run.starts)
        w = p.get(f"{own}group_norm.weight")
        scale = run.ops.xp.ones_like(x[0, 0]) if w is None else 1.0 + w
        y = run.ops.head_norm(run.drop(run.ops.xp.astype(h, x)), scale, NORM_EPS)
        return y, (*inputs, *cell)


class FeedForwardV1(Layer):
    """Gated feed-forward layer of the first xLSTM paper, of width `inner`."""

    name = "ffn-v1"
    kind = "channel"

    inner: int
    act_fn: str
    bias: bool
    residual_std: float

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_map("proj_up", 2 * self.inner, d, normal(small_std(d)), self.bias)
        yield from linear_map("proj_down", d, self.inner, normal(self.residual_std), self.bias)

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        gate, up = run.halves(x, p, "proj_up")
        y = run.ops.glu(gate, up, self.act_fn)
        return run.drop(run.linear(y, p, "proj_down")), ()
