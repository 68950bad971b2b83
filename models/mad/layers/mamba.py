"""Mamba (version 1): every inner channel has N decay rates of its own.

    x, z = W_in u                                each (B, S, inner), inner = expand d
    x = SiLU(conv_k(x))                          depthwise, causal
    r, B, C = W_x x                              rank = d / 16 rounded up; N; N
    dt = softplus(W_dt r + b)                    (B, S, inner)
    S_t[c] = exp(-exp(A_log[c]) dt_t[c]) S_{t-1}[c] + dt_t[c] x_t[c] B_t
    h_t[c] = S_t[c] . C_t + D[c] x_t[c]
    y = W_out( h * SiLU(z) )

Softplus of the bias begins log-uniform in 0.001 to 0.1, exp(A_log) as 1, 2, ... N.

Source: Gu and Dao 2023, Mamba, arXiv:2312.00752; mad-lab.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *


@dataclass(frozen=True, kw_only=True)
class Mamba(Layer):
    """Numbers of the layer.

    Attributes:
        expand: inner width in widths of the model.
        states: N, numbers kept by each inner channel.
        conv: taps of the convolution.
        rank: of the map to dt, None d / 16.
    """

    name = "mamba"
    about = "selective state space: every channel forgets at several speeds"

    expand: int = 2
    states: int = 4
    conv: int = 4
    rank: int | None = None

    def dt_rank(self, d: int) -> int:
        """Rank of the map to dt at width d."""
        return -(-d // 16) if self.rank is None else self.rank

    def check(self, d: int) -> None:
        check_positive(expand=self.expand, states=self.states, conv=self.conv, rank=self.dt_rank(d))

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner, rank = self.expand * d, self.dt_rank(d)
        yield linear("in_proj.weight", 2 * inner, d)
        yield taps("conv.weight", inner, self.conv)
        yield bias("conv.bias", inner, self.conv)
        yield linear("x_proj.weight", rank + 2 * self.states, inner, product=False)
        yield ParamSpec("dt_proj.weight", (inner, rank), bound(rank), decay=True)
        yield ParamSpec("dt_proj.bias", (inner,), "inverse_softplus:0.001:0.1")
        yield ParamSpec("A_log", (inner, self.states), "log_of_count")
        yield ParamSpec("D", (inner,), "ones")
        yield linear("out_proj.weight", d, inner)

    def state_shapes(self, d: int, length: int) -> Shapes:
        inner = self.expand * d
        return {"cell": [(inner, self.states)], "conv": [(self.conv - 1, inner)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        d = x.shape[-1]
        inner, N, rank = self.expand * d, self.states, self.dt_rank(d)
        cell, conv = (None, None) if state is None else state
        w, w_x = p["in_proj.weight"], p["x_proj.weight"]
        u, z = ops.linears(x, [w[:inner], w[inner:]])
        u, conv = ops.causal_conv(u, p["conv.weight"], p["conv.bias"], state=conv, silu=True)
        low, Bt, Ct = ops.linears(u, [w_x[:rank], w_x[rank : rank + N], w_x[rank + N :]])
        dt = run.linear(low, p, "dt_proj")
        dt = ops.activate(xp.float32(dt), "softplus")
        h, cell = ops.selective_scan(u, dt, -xp.exp(p["A_log"]), Bt, Ct, state=cell)
        h = ops.swiglu(z, h + p["D"] * u)
        return run.linear(h, p, "out_proj"), (cell, conv)
