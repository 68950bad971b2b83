"""The mLSTM layer and the feed-forward layer of xLSTM Large, the architecture of xLSTM-7B.

With NH heads, DK and DV the widths of a key and of a value in a head, U the inner width:

    q = Wq u,  k = Wk u,  v = Wv u,  o = Wo u              per head DK, DK, DV, DV
    i = cap(Wi u + bi, 15),  f = cap(Wf u + bf, 15)        (B, S, NH), cap(x, c) = c tanh(x / c)
    y = Wout( sigmoid(o) * (LayerNorm_per_head(mLSTM(q, k, v, i, f)) * w) )

    y = Wdown( silu(Wgate u) * (Wup u) )                   width U

The mLSTM cell of one head, with s = DK^-1/2 and the state C (DK, DV), n (DK), m (scalar), zero at
the start:

    m' = max(logsig(f) + m, i)       F = exp(logsig(f) + m - m')       I = exp(i - m')
    C = F C + I k^T v                n = F n + I k                     m = m'
    h = s q C / ( max(|s q.n|, exp(-m)) + eps )

Initial values are those of the training code of the papers (NX-AI/xlstm-jax): "small" normals of
std sqrt(2 / 5d), "wang" normals of std 2 / (blocks sqrt(d)) into the residual stream, gate matrices
zero, input-gate bias -10, forget-gate biases from 3 to 6.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517; Beck et al. 2025, xLSTM 7B, arXiv:2503.13427.
"""

from collections.abc import Iterable
from typing import Any

from mlxhog.models.mad.layer import Layer, Params, Run, Shapes, State, linear_map, normal, small_std
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec


class LargeMLSTM(Layer):
    """mLSTM of xLSTM Large; `qk`, `v` are widths over all heads, `wang` a standard deviation."""

    name = "mlstm-large"

    heads: int
    qk: int
    v: int
    bias: bool
    chunk_size: int
    eps: float
    gate_cap: float
    wang: float

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        small = normal(small_std(d))
        for name, out in (("q", self.qk), ("k", self.qk), ("v", self.v)):
            yield from linear_map(name, out, d, small, self.bias)
        yield from linear_map("ogate_preact", self.v, d, "zeros", self.bias)
        for gate, start in (("igate", "constant:-10.0"), ("fgate", "linspace:3.0:6.0")):
            yield ParamSpec(f"{gate}_preact.weight", (self.heads, d), "zeros", decay=True)
            yield ParamSpec(f"{gate}_preact.bias", (self.heads,), start)
        yield ParamSpec("multihead_norm.weight", (self.v,), "ones")
        if self.bias:
            yield ParamSpec("multihead_norm.bias", (self.v,), "zeros")
        yield from linear_map("out_proj", d, self.v, normal(self.wang), self.bias)

    def state_shapes(self, d: int, length: int) -> Shapes:
        NH, DK, DV = self.heads, self.qk // self.heads, self.v // self.heads
        return {"cell": [(NH, DK, DV), (NH, DK), (NH,)]}

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        ops, heads = run.ops, (*x.shape[:2], self.heads, -1)
        gates = ("ogate_preact", "igate_preact", "fgate_preact")
        q, k, v, o, i, f = run.linears(x, p, "q", "k", "v", *gates)
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        i = ops.soft_cap(i, self.gate_cap)
        f = run.forget(ops.soft_cap(f, self.gate_cap))
        how: dict[str, Any] = {"chunk_size": self.chunk_size, "eps": self.eps}
        h, state = ops.mlstm_cell(q, k, v, i, f, state=state, **how)
        y = ops.head_norm_gate(h, o, p["multihead_norm.weight"], run.norm_eps)
        if self.bias:
            y = y + ops.xp.sigmoid(o) * p["multihead_norm.bias"]
        return run.linear(y, p, "out_proj"), state


class LargeFeedForward(Layer):
    """Feed-forward layer of xLSTM Large, of width `inner`."""

    name = "swiglu-large"
    kind = "channel"

    inner: int
    bias: bool
    wang: float

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        small = normal(small_std(d))
        yield from linear_map("proj_up_gate", self.inner, d, small, self.bias)
        yield from linear_map("proj_up", self.inner, d, small, self.bias)
        yield from linear_map("proj_down", d, self.inner, normal(self.wang), self.bias)

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        gate, up = run.linears(x, p, "proj_up_gate", "proj_up")
        return run.linear(run.ops.swiglu(gate, up), p, "proj_down"), ()
