"""State-space layers: Mamba, Mamba-2 and Mamba-3.

`inner` is expand d. Softplus of the bias of dt begins log-uniform in 0.001 to 0.1.
"""

import math
from collections.abc import Iterable

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
)
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec

CHUNK_SIZE = 32


class Mamba(Layer):
    """Selective state space model: several decay rates per channel.

        x, z = W_in u                                each (B, S, inner)
        x = SiLU(conv_k(x))                          depthwise, causal
        r, B, C = W_x x                              rank; N; N
        dt = softplus(W_dt r + b)                    (B, S, inner)
        S_t[c] = exp(-exp(A_log[c]) dt_t[c]) S_{t-1}[c] + dt_t[c] x_t[c] B_t
        h_t[c] = S_t[c] . C_t + D[c] x_t[c]
        y = W_out( h * SiLU(z) )

    exp(A_log) begins as 1, 2, ... N.

    Source: Gu and Dao 2023, Mamba, arXiv:2312.00752; mad-lab.
    """

    name = "mamba"

    expand: int = 2
    states: int = 4  # N, state size of each inner channel
    conv: int = 4  # kernel size of the convolution
    rank: int | None = None  # of the projection of dt; None: d / 16, rounded up

    def dt_rank(self, d: int) -> int:
        """Return the rank of the projection of dt at width d."""
        return -(-d // 16) if self.rank is None else self.rank

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner, rank = self.expand * d, self.dt_rank(d)
        yield from linear_params(d, in_proj=2 * inner)
        yield from conv_params("conv", inner, self.conv, bias=True)
        yield from linear_params(inner, autocast=False, x_proj=rank + 2 * self.states)
        yield from linear_params(rank, autocast=False, dt_proj=inner)
        yield ParamSpec("dt_proj.bias", (inner,), "inverse_softplus:0.001:0.1")
        yield ParamSpec("A_log", (inner, self.states), "log_of_count")
        yield ParamSpec("D", (inner,), "ones")
        yield from linear_params(inner, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        inner = self.expand * d
        return {"cell": [(inner, self.states)], "conv": [(self.conv - 1, inner)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp, (cell, conv) = ctx.ops, ctx.ops.xp, state
        d = x.shape[-1]
        inner, N, rank = self.expand * d, self.states, self.dt_rank(d)
        u, z = ctx.parts(x, p, "in_proj", inner)
        u, conv = ctx.conv(u, p, conv)
        low, Bt, Ct = ctx.parts(u, p, "x_proj", rank, rank + N)
        dt = ops.activate(ctx.linear(low, p, "dt_proj"), "softplus")
        h, cell = ops.selective_scan(u, dt, -xp.exp(p["A_log"]), Bt, Ct, state=cell)
        h = ops.swiglu(z, h + p["D"] * u)
        return ctx.linear(h, p, "out_proj"), (cell, conv)


class SSD(Layer):
    """State-space duality (Mamba-2): one decay rate per head.

        z, (x, B, C), dt = W_in u                    inner;  N, N;  heads
        x, B, C = SiLU(conv_k(x, B, C))              depthwise, causal; x cut into its heads
        dt = softplus(dt + bias),  a = -exp(A_log) dt
        S_t = exp(a_t) S_{t-1} + dt_t B_t x_t^T      (N, inner / heads), B and C common to all heads
        h_t = S_t^T C_t + D x_t
        y = W_out RMSNorm( h * SiLU(z) )

    exp(A_log) begins uniform in 1 to 16.

    Source: Dao and Gu 2024, Transformers are SSMs, arXiv:2405.21060.
    """

    name = "ssd"

    heads: int = 4  # of the inner width
    expand: int = 2
    states: int = 16  # N, state size of each inner channel
    conv: int = 4  # kernel size of the convolution

    def heads_width(self, d: int) -> int:
        return self.expand * d

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner = self.expand * d
        xbc = inner + 2 * self.states
        yield from linear_params(d, z_proj=inner, xbc_proj=xbc)
        yield from linear_params(d, autocast=False, dt_proj=self.heads)
        yield ParamSpec("dt_bias", (self.heads,), "inverse_softplus:0.001:0.1")
        yield from conv_params("conv", xbc, self.conv, bias=True)
        yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        yield ParamSpec("D", (self.heads,), "ones")
        yield ParamSpec("out_norm.weight", (inner,), "ones")
        yield from linear_params(inner, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        inner, N = self.expand * d, self.states
        cell = (self.heads, N, inner // self.heads)
        return {"cell": [cell], "conv": [(self.conv - 1, inner + 2 * N)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp, (cell, conv) = ctx.ops, ctx.ops.xp, state
        B, S, d = x.shape
        inner, N, heads = self.expand * d, self.states, self.heads
        biased = {**p, "dt_proj.bias": p["dt_bias"]}
        z, xbc, dt = ctx.linears(x, biased, "z_proj", "xbc_proj", "dt_proj")
        xbc, conv = ctx.conv(xbc, p, conv)
        u = xbc[..., :inner].reshape(B, S, heads, inner // heads)
        Bt, Ct = (
            xp.broadcast_to(y[:, :, None], (B, S, heads, N))
            for y in (xbc[..., inner : inner + N], xbc[..., inner + N :])
        )
        dt = ops.activate(dt, "softplus")[..., None]
        h, cell = ops.recurrence(
            Ct, Bt, dt * u, -xp.exp(p["A_log"])[:, None] * dt, chunk_size=CHUNK_SIZE, state=cell
        )
        h = (h + p["D"][:, None] * u).reshape(B, S, inner)
        h = ctx.norm(ops.swiglu(z, h), p, "out_norm")
        return ctx.linear(h, p, "out_proj"), (cell, conv)


MIN_RATE = 1e-4
"""Smallest decay rate of Mamba-3."""


class Mamba3(Layer):
    """Mamba-3: complex-valued states, discretized by the trapezoidal rule.

        z, x, (B, C), (dt, a, l, w) = W u            inner, inner;  N, N;  heads x 3, pairs
        dt = softplus(dt + bias),  alpha = exp(-max(softplus(a), 1e-4) dt),  l = sigmoid(l)
        B, C = RMSNorm(B) + b_B, RMSNorm(C) + b_C    biases of every head
        theta_t = theta_{t-1} + pi tanh(w_t) dt_t    of every head; rotates the pairs of B and C
        S_t = alpha_t S_{t-1} + (1 - l_t) dt_t alpha_t B_{t-1} x_{t-1}^T + l_t dt_t B_t x_t^T
        h_t = S_t^T C_t + D x_t
        y = W_out( SiLU(z) * h )

    A rotated pair is a complex number of the state. The trapezoidal rule weighs the inputs at both
    ends of a step and replaces Mamba-2's convolution. Without its last term S_t is

        R_t = alpha_t ( R_{t-1} + (l_{t-1} dt_{t-1} + (1 - l_t) dt_t) B_{t-1} x_{t-1}^T )

    which is one `recurrence` on the inputs of the position before. B and C are common to all heads
    but for their biases, which begin at 1. The MIMO variant, which saves memory traffic of a GPU in
    decoding, is not included.

    Source: Lahoti et al. 2026, Mamba-3, arXiv:2603.15569; state-spaces/mamba.
    """

    name = "mamba3"

    heads: int = 4  # of the inner width
    expand: int = 2
    states: int = 16  # N, state size of each inner channel
    rope_fraction: float = 0.5  # share of rotated states

    @property
    def pairs(self) -> int:
        """Return the number of rotated pairs of states."""
        return int(self.states * self.rope_fraction) // 2

    def heads_width(self, d: int) -> int:
        return self.expand * d

    def check(self, d: int) -> None:
        super().check(d)
        if not (0 < self.rope_fraction <= 1 and self.pairs):
            raise ConfigError(
                f"rope_fraction is {self.rope_fraction} of {self.states} states; choose up to 1, "
                "so that at least 2 states rotate"
            )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner, N, heads = self.expand * d, self.states, self.heads
        yield from linear_params(d, z_proj=inner, x_proj=inner, bc_proj=2 * N)
        yield from linear_params(d, autocast=False, gates_proj=3 * heads + self.pairs)
        yield ParamSpec("dt_bias", (heads,), "inverse_softplus:0.001:0.1")
        for name in "BC":
            yield ParamSpec(f"{name}_norm.weight", (N,), "ones")
            yield ParamSpec(f"{name}_bias", (heads, N), "ones")
        yield ParamSpec("D", (heads,), "ones")
        yield from linear_params(inner, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        heads, N, P = self.heads, self.states, self.expand * d // self.heads
        return {"cell": [(heads, N, P), (heads, self.pairs), (heads, N), (heads, P)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp = ctx.ops, ctx.ops.xp
        B, S, _ = x.shape
        heads, N = self.heads, self.states
        z, u, bc, gates = ctx.linears(x, p, "z_proj", "x_proj", "bc_proj", "gates_proj")
        u = u.reshape(B, S, heads, -1)
        Bt, Ct = (
            ctx.norm(part, p, f"{name}_norm")[:, :, None] + p[f"{name}_bias"]
            for name, part in (("B", bc[..., :N]), ("C", bc[..., N:]))
        )
        dt = ops.activate(gates[..., :heads] + p["dt_bias"], "softplus")
        rate = xp.maximum(ops.activate(gates[..., heads : 2 * heads], "softplus"), MIN_RATE)
        own = xp.sigmoid(gates[..., 2 * heads : 3 * heads])
        angle = math.pi * xp.tanh(gates[..., None, 3 * heads :]) * dt[..., None]
        h, last = rotating_cell(ops, Ct, Bt, u, -rate * dt, dt, own, angle, state)
        h = (h + p["D"][:, None] * u).reshape(B, S, -1)
        return ctx.linear(ops.swiglu(z, h), p, "out_proj"), last


def rotating_cell(
    ops: Ops, q: Array, k: Array, v: Array, log_decay: Array, dt: Array, own: Array, angle: Array,
    state: State,
) -> tuple[Array, State]:  # fmt: skip
    """Return h (B, S, heads, P), and S, theta, B and x of the last position.

    q and k are C and B before rotation, (B, S, heads, N); v is x, (B, S, heads, P); log_decay (of
    alpha, at most 0), dt (at least 0) and own, the share l of a position's own input, are
    (B, S, heads); angle, the rotation of each pair per step, (B, S, heads, pairs).
    """
    xp, n, (cell, *before) = ops.xp, angle.shape[-1], state
    theta, k_before, v_before = (
        xp.zeros_like(like[:, 0]) if one is None else one
        for one, like in zip(before, (angle, k, v), strict=True)
    )
    theta = theta[:, None] + xp.cumsum(angle, 1)
    cos, sin = xp.cos(theta), xp.sin(theta)

    def rotated(x: Array) -> Array:
        pairs = x[..., : 2 * n].reshape(*x.shape[:-1], n, 2)
        real, imaginary = xp.unstack(pairs, -1)
        real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
        pairs = xp.stack([real, imaginary], -1).flatten(-2)
        return xp.concatenate([pairs, x[..., 2 * n :]], -1)

    q, k = rotated(q), rotated(k)
    of_own, of_before = own * dt, (1 - own) * dt
    written = xp.concatenate([xp.zeros_like(of_own[:, :1]), of_own[:, :-1]], 1) + of_before
    shifted_k = xp.concatenate([k_before[:, None], k[:, :-1]], 1)
    shifted_v = xp.concatenate([v_before[:, None], v[:, :-1]], 1)
    shifted_k = shifted_k * (written * xp.exp(log_decay))[..., None]
    h, cell = ops.recurrence(
        q, shifted_k, shifted_v, log_decay[..., None], chunk_size=CHUNK_SIZE, state=cell
    )
    last = of_own[:, -1, :, None] * k[:, -1]
    cell = cell + last[..., None] * v[:, -1, :, None]
    h = h + (of_own * (q * k).sum(-1))[..., None] * v
    # Modulo 2 pi, so that the precision of an angle does not depend on earlier positions.
    theta, period = theta[:, -1], 2 * math.pi
    whole = xp.stop_gradient(xp.astype(xp.int32(theta / period), theta))  # towards 0
    theta = theta - period * xp.where(theta < period * whole, whole - 1, whole)
    return h, (cell, theta, k[:, -1], v[:, -1])
