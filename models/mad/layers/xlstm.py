"""The mLSTM and the sLSTM cell between their projections, behind a short convolution.

    c = SiLU(conv_k(u))                          depthwise, causal; u itself where conv is 0

mLSTM, with NH heads of DH = d / NH:

    q = Wq c,  k = Wk c,  v = Wv u,  o = Wo u    each (B, S, d)
    i~ = Wi u + bi,  f~ = Wf u + bf              (B, S, NH)
    h = mLSTM(q, k, v, i~, f~)
    y = Wout( sigmoid(o) * LN_head(h) )

The cell of one head, with the state C (DH, DH), n (DH), m, zero at the start:

    m' = max(logsig(f~) + m, i~)      I = exp(i~ - m')      F = exp(logsig(f~) + m - m')
    C = F C + I k v^T     n = F n + I k     m = m'
    h = C^T q / (sqrt(DH) max(|n^T q| / sqrt(DH), exp(-m)))

which equals the parallel form with L[t, j] = sum_{j < s <= t} logsig(f~_s) + i~_j in its exponents.
Forget biases begin at 3 to 6, spread over the heads; with `signed` at -3 to 3.

With `signed` the state may change its sign: F has the factor 2 sigmoid(f~) - 1 in (-1, 1) in place
of sigmoid(f~), as eigenvalues that a positive gate cannot have are needed for parity. The logarithm
of its size takes the place of logsig(f~); its sign s_t is moved out of the recurrence,

    P_t = s_1 s_2 ... s_t        h_t = P_t mLSTM(q, P k, v, i~, f~)

sLSTM, sequential in S, where memory mixes inside a head:

    h = sLSTM(Wi c, Wf c, Wz u, Wo u)
    y = Wout LN_head(h)

The cell of one head, with the state h, c, n, m (DH each), zero at the start:

    i~ = (Wi c)_t + Ri h + bi,  and so f~, z~, o~
    m' = max(logsig(f~) + m, i~), or i~ where n is 0     I = exp(i~ - m')
    F = exp(logsig(f~) + m - m')
    c = F c + I tanh(z~)     n = F n + I     m = m'     h = sigmoid(o~) c / n

Forget biases begin at 3 to 6, spread over the units of a head (`bias_init` small), or at 5 to -7,
so that some units forget at once (powerlaw; the package's, with exponent 1); recurrent matrices
begin at 0 (`recurrent_init` zeros) or uniform within DH^-1/2.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6; Grazzi et al. 2024,
Unlocking state-tracking in linear RNNs through negative eigenvalues, arXiv:2411.12537, for signs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Layer, Params, Run, Shapes, State, maps, taps
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec

CHUNK_SIZE = 64
CELL_EPS = 1e-6
SMALLEST = 1e-6
"""Size of a signed forget gate of 0, twice."""


class _CellLayer(Layer):
    """A cell behind a convolution: its heads and taps, and what both kinds of layers share."""

    may_be_0 = ("conv",)

    heads: int = 4  # NH
    conv: int = 4  # k, taps of the convolution, 0 for none

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        if self.conv:
            yield taps("conv.weight", d, self.conv)
            yield ParamSpec("conv.bias", (d,), "zeros")
        yield from self.cell_spec(d)
        yield ParamSpec("head_norm.weight", (d,), "ones")
        yield from maps(d, out_proj=d)

    def cell_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters of the projections and the cell."""
        raise NotImplementedError

    def cell_shapes(self, d: int) -> Sequence[tuple[int, ...]]:
        """Return the shapes of the cell's state of one sequence."""
        raise NotImplementedError

    def state_shapes(self, d: int, length: int) -> Shapes:
        inputs = {"conv": [(self.conv - 1, d)]} if self.conv else {}
        return {**inputs, "cell": self.cell_shapes(d)}

    def convolved(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        """Return c (B, S, d), and the convolution's part of the state."""
        if not self.conv:
            return x, ()
        w, b = p["conv.weight"], p["conv.bias"]
        c, last = run.ops.causal_conv(x, w, b, state=state[0], silu=True)
        return c, (last,)


class MLSTM(_CellLayer):
    """mLSTM: a matrix memory with exponential gates."""

    name = "mlstm"

    signed: bool = False  # whether the forget gate may be negative

    def cell_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from maps(d, q_proj=d, k_proj=d, v_proj=d, ogate=d)
        forget = "linspace:-3.0:3.0" if self.signed else "linspace:3.0:6.0"
        for name, bias in (("igate", "zeros"), ("fgate", forget)):
            yield ParamSpec(f"{name}.weight", (self.heads, d), "zeros", decay=True)
            yield ParamSpec(f"{name}.bias", (self.heads,), bias)

    def cell_shapes(self, d: int) -> Sequence[tuple[int, ...]]:
        NH, DH = self.heads, d // self.heads
        return (NH, DH, DH), (NH, DH), (NH,)

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        ops, xp, heads = run.ops, run.ops.xp, (*x.shape[:2], self.heads, -1)
        c, inputs = self.convolved(p, x, state, run)
        q, k = run.linears(c, p, "q_proj", "k_proj", heads=self.heads)
        v, o, i, f = run.linears(x, p, "v_proj", "ogate", "igate", "fgate")
        if self.signed:  # f' with sigmoid(f') = |2 sigmoid(f) - 1|, and P (B, S, NH, 1)
            flips = xp.cumsum(xp.where(f < 0, xp.ones_like(f), xp.zeros_like(f)), 1)
            P, size = (1.0 - 2.0 * (flips % 2.0))[..., None], xp.abs(f)
            f = size + xp.log(xp.maximum(1.0 - xp.exp(-size), SMALLEST) / 2)
            k = k * P
        how: dict[str, Any] = {"chunk_size": CHUNK_SIZE, "eps": CELL_EPS}
        h, cell = ops.mlstm_cell(q, k, v.reshape(heads), i, f, state=state[-3:], **how)
        if self.signed:
            (C, n, m), last = cell, P[:, -1]
            h, cell = h * P, (C * last[..., None], n * last, m)
        y = ops.head_norm_gate(h, o, p["head_norm.weight"], run.norm_eps)
        return run.linear(y, p, "out_proj"), (*inputs, *cell)


BIAS_INIT = {"small": "3.0:6.0", "powerlaw": "5.0:-7.0"}
"""First and last forget bias of a head."""

RECURRENT_INIT = ("zeros", "uniform")


class SLSTM(_CellLayer):
    """sLSTM: a scalar memory whose gates see its last output."""

    name = "slstm"

    conv: int = 0
    bias_init: str = "small"
    recurrent_init: str = "zeros"

    def check(self, d: int) -> None:
        super().check(d)
        for name, choices in (("bias_init", BIAS_INIT), ("recurrent_init", RECURRENT_INIT)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )

    def cell_spec(self, d: int) -> Iterable[ParamSpec]:
        NH, DH = self.heads, d // self.heads
        yield from maps(d, product=False, igate=d, fgate=d, zgate=d, ogate=d)
        recurrent = f"uniform:{DH**-0.5!r}" if self.recurrent_init == "uniform" else "zeros"
        forget = f"slstm_linspace:{NH}:{BIAS_INIT[self.bias_init]}"
        yield ParamSpec("recurrent.weight", (NH, 4 * DH, DH), recurrent, decay=True)
        yield ParamSpec("recurrent.bias", (4 * d,), forget)

    def cell_shapes(self, d: int) -> Sequence[tuple[int, ...]]:
        return [(self.heads, d // self.heads)] * 4

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        c, inputs = self.convolved(p, x, state, run)
        i, f = run.linears(c, p, "igate", "fgate", heads=self.heads)
        z, o = run.linears(x, p, "zgate", "ogate", heads=self.heads)
        R, b = p["recurrent.weight"], p["recurrent.bias"]
        h, cell = run.ops.slstm_cell(i, f, z, o, R, b, state=state[-4:])
        h = run.ops.xp.astype(h, x)
        y = run.ops.head_norm(h, p["head_norm.weight"], run.norm_eps)
        return run.linear(y, p, "out_proj"), (*inputs, *cell)
