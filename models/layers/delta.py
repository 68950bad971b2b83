"""The delta rule: states that replace the value of a key; KDA and RWKV-7 extend it.

A transition has the eigenvalue 1 - beta in the direction of a key. A beta above 1 makes it
negative, which a linear recurrence needs to count modulo 2 at any length.
"""

import math
from collections.abc import Iterable

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

CHUNK_SIZE = 16


class DeltaRule(Layer):
    """Hyperparameters and state of every layer of the delta rule."""

    householders = 1  # n, keys and values per token

    heads: int = 4
    conv: int = 4  # kernel size of the convolution

    def channels(self, d: int) -> int:
        """Return the channels of the convolution: a query, n keys and n values."""
        return (1 + 2 * self.householders) * d

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)], "conv": [(self.conv - 1, self.channels(d))]}

    def query_key_value(
        self, p: Params, u: Array, conv: Array, ctx: ForwardContext
    ) -> tuple[Array, ...]:
        """Return q (B, S, heads, dh), k and v (B, S n, heads, dh), and the convolution's state."""
        u, conv = ctx.conv(u, p, conv)
        B, _, channels = u.shape
        d = channels // (1 + 2 * self.householders)
        parts = ctx.ops.xp.split(u, [d, d + self.householders * d], -1)
        q, k, v = (y.reshape(B, -1, self.heads, d // self.heads) for y in parts)
        return unit(ctx, q, q.shape[-1] ** -0.5), unit(ctx, k), v, conv


class _Delta(DeltaRule):
    """DeltaNet and its variants with a decay or several Householder factors.

        q, k_i, v_i = SiLU(conv_k(W u))              depthwise, causal; heads of dh = d / heads
        q, k_i = q / |q| / sqrt(dh), k_i / |k_i|     of every head, i = 1 .. n
        beta_i = sigmoid(W_b u)                      (B, S, n, heads), or twice that if negative
        a = -exp(A_log) softplus(W_a u + bias)       (B, S, heads), or 0 without decay
        H_0 = exp(a_t) S_{t-1}
        H_i = (I - beta_i k_i k_i^T) H_{i-1} + beta_i k_i v_i^T
        S_t = H_n,  h_t = S_t^T q_t
        y = W_out( SiLU(W_g u) * RMSNorm_head(h) )

    A token is n positions of `recurrence`; the first has the decay, the last the query.
    Softplus of the bias begins log-uniform in 0.001 to 0.1, exp(A_log) uniform in 1 to 16.
    """

    decay = False
    negative = False
    gated = True

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, qkv_proj=self.channels(d))
        yield from conv_params("conv", self.channels(d), self.conv)
        yield from linear_params(d, autocast=False, b_proj=self.householders * self.heads)
        if self.decay:
            yield from linear_params(d, autocast=False, a_proj=self.heads)
            yield ParamSpec("dt_bias", (self.heads,), "inverse_softplus:0.001:0.1")
            yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        if self.gated:
            yield from linear_params(d, g_proj=d)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield from linear_params(d, out_proj=d)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp = ctx.ops, ctx.ops.xp
        B, S, d = x.shape
        n, NH = self.householders, self.heads
        cell, conv = state
        names = ["qkv_proj", *["g_proj"] * self.gated, "b_proj", *["a_proj"] * self.decay]
        u, *rest = ctx.linears(x, p, *names)
        *g, b = rest[: self.gated + 1]
        q, k, v, conv = self.query_key_value(p, u, conv, ctx)
        beta = write_strength(ops, b.reshape(B, S * n, NH), self.negative)
        if self.decay:
            dt = ops.activate(rest[-1] + p["dt_bias"], "softplus")
            decay = -xp.exp(p["A_log"]) * dt
        else:
            decay = xp.zeros((B, S, NH), like=beta)
        if n > 1:
            q = xp.pad(q[:, :, None], [(0, 0), (0, 0), (n - 1, 0), (0, 0), (0, 0)])
            decay = xp.pad(decay[:, :, None], [(0, 0), (0, 0), (0, n - 1), (0, 0)])
            q, decay = q.reshape(k.shape), decay.reshape(beta.shape)
        h, cell = ops.recurrence(
            q, k, v, decay[..., None], beta=beta, chunk_size=CHUNK_SIZE, state=cell
        )
        if n > 1:
            h = h.reshape(B, S, n, NH, d // NH)[:, :, -1]
        return ctx.gated_output(h, p, *g), (cell, conv)


class DeltaNet(_Delta):
    """Delta rule: a state that replaces the value of a key.

    n = 1, no decay, no gate at the output (SiLU(W_g u) is 1).

    Sources: Yang et al. 2024, DeltaNet, arXiv:2406.06484; Grazzi et al. 2024, Unlocking
    State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv:2411.12537.
    """

    name = "delta-net"
    gated = False

    negative: bool = False  # whether beta reaches 2


class GatedDeltaNet(_Delta):
    """Gated delta rule: a state that replaces the value of a key, and decays.

    n = 1. Source: Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464.
    """

    name = "gated-delta-net"

    decay: bool = True


class GatedDeltaProduct(_Delta):
    """Delta rule with several keys and values per token.

    A product of n generalized Householder matrices reaches any orthogonal matrix that moves at most
    n directions, so more of them track larger groups of permutations.

    Source: Siems et al. 2025, DeltaProduct, arXiv:2502.10297.
    """

    name = "gated-delta-product"

    householders: int = 2
    decay: bool = True
    negative: bool = True


def unit(ctx: ForwardContext, x: Array, length: float = 1.0) -> Array:
    """Return heads x (..., dh) scaled to a norm, length * x / sqrt(|x|^2 + eps)."""
    dh = x.shape[-1]
    w = ctx.ops.xp.full((dh,), length * dh**-0.5, like=x)
    return ctx.ops.rms_norm(x, w, ctx.norm_eps / dh)


def write_strength(ops: Ops, b: Array, negative: bool = False) -> Array:
    """Return beta from its pre-activation: 0 to 1, or 0 to 2 if `negative`."""
    beta = ops.activate(b, "sigmoid")
    return 2.0 * beta if negative else beta


class KDA(DeltaRule):
    """Gated delta rule with a decay per key element.

        q, k, v, beta                                as in the delta rule, n = 1
        a = -exp(A_log) softplus(W_up W_down u + bias)   (B, S, d), A_log per head
        S' = diag(exp(a_t)) S_{t-1}
        S_t = (I - beta_t k_t k_t^T) S' + beta_t k_t v_t^T
        h_t = S_t^T q_t
        y = W_out( sigmoid(G_up G_down u) * RMSNorm_head(h) )

    Softplus of the bias begins log-uniform in 0.001 to 0.1, exp(A_log) uniform in 1 to 16.

    Source: Kimi Team 2025, Kimi Linear, arXiv:2510.26692.
    """

    name = "kda"

    rank: int | None = None  # of the projections of decay and gate; None: d / heads
    negative: bool = False

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        rank = d // self.heads if self.rank is None else self.rank
        yield from linear_params(d, qkv_proj=3 * d)
        yield from conv_params("conv", 3 * d, self.conv)
        yield from linear_params(d, autocast=False, b_proj=self.heads, decay_down=rank)
        yield from linear_params(rank, autocast=False, decay_up=d)
        yield ParamSpec("dt_bias", (d,), "inverse_softplus:0.001:0.1")
        yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        yield from linear_params(d, gate_down=rank)
        yield from linear_params(rank, gate_up=d)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield from linear_params(d, out_proj=d)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp = ctx.ops, ctx.ops.xp
        cell, conv = state
        u, b, a, g = ctx.linears(x, p, "qkv_proj", "b_proj", "decay_down", "gate_down")
        a = ctx.linear(a, p, "decay_up")
        g = ctx.linear(g, p, "gate_up")
        q, k, v, conv = self.query_key_value(p, u, conv, ctx)
        beta = write_strength(ops, b, self.negative)
        dt = ops.activate(a + p["dt_bias"], "softplus").reshape(q.shape)
        log_decay = -xp.exp(p["A_log"])[:, None] * dt
        h, cell = ops.recurrence(q, k, v, log_decay, beta=beta, chunk_size=CHUNK_SIZE, state=cell)
        return ctx.gated_output(h, p, g, "sigmoid"), (cell, conv)


MIN_LOG_DECAY = -math.exp(-0.5)
"""Smallest log decay of RWKV-7."""

EPS = 1e-5
"""Epsilon of RWKV-7's head norm per element: 64e-5 at the published head width of 64."""

TOKEN_SHIFT = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""Inputs of RWKV-7's token shift; mu begins as 1 - (channel / d)^exponent."""


class RWKV7(Layer):
    """Generalized delta rule with a removal key and vector-valued gates.

        x_i = u_t + mu_i * (u_{t-1} - u_t)           token shift, i one of r, w, k, v, a, g
        r, k, v = W_r x_r, W_k x_k, W_v x_v          heads of dh = d / heads
        w = -exp(-1/2) sigmoid(w0 + W_up tanh(W_down x_w))   log of the decay, (B, S, d)
        a = sigmoid(a0 + A_up A_down x_a)            in-context learning rate, (B, S, d)
        kappa = k * k_k / |k * k_k|                  removal key, of every head
        k~ = k * (1 + (a - 1) * k_a)                 replacement key
        S_t = diag(exp(w_t)) S_{t-1} - (a_t * kappa_t) (S_{t-1}^T kappa_t)^T + k~_t v_t^T
        h_t = S_t^T r_t
        o = LayerNorm_head(h) + ((r * k~) . r_k) v   the bonus is one number per head
        y = W_out( o * G_up sigmoid(G_down x_g) )

    The published model adds the first layer's values to those of later layers; this layer is as
    the published first one. Its initialization differs in two things: the second matrix of a
    low-rank projection is normal of the same size instead of orthogonal, and the biases w0 and a0
    have no zigzag within a head. Ranks follow from the width by the published rule.

    Source: Peng et al. 2025, RWKV-7 "Goose", arXiv:2503.14456; github.com/BlinkDL/RWKV-LM.
    """

    name = "rwkv7"

    heads: int = 4
    rank: int | None = None  # of the projections of decay and learning rate; None: by the width
    gate_rank: int | None = None  # of the projection of the gate; None: by the width

    def ranks(self, d: int) -> tuple[int, int]:
        """Return the ranks of decay and learning rate, and of the gate, at width d."""
        rank, gate = (max(32, round(times * math.sqrt(d) / 32) * 32) for times in (2.5, 5.0))
        return (
            rank if self.rank is None else self.rank,
            gate if self.gate_rank is None else self.gate_rank,
        )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        rank, gate_rank = self.ranks(d)
        for name, exponent in TOKEN_SHIFT.items():
            yield ParamSpec(f"mu_{name}", (d,), f"powerlaw:1:0:{exponent}")
        for name, size in (("r", 0.5), ("k", 0.05), ("v", 0.5)):
            init = f"uniform:{size / math.sqrt(d)!r}"
            yield ParamSpec(f"{name}_proj.weight", (d, d), init, decay=True, autocast=True)
        for name, low in (("decay", rank), ("rate", rank), ("gate", gate_rank)):
            up = f"normal:{0.1 / math.sqrt(d)!r}"
            is_gate = name == "gate"
            yield ParamSpec(f"{name}_down.weight", (low, d), "zeros", decay=True, autocast=is_gate)
            yield ParamSpec(f"{name}_up.weight", (d, low), up, decay=True, autocast=is_gate)
        yield ParamSpec("w0", (d,), "linspace:-5.5:0.5")
        yield ParamSpec("a0", (d,), "linspace:-0.39:0.01")
        yield ParamSpec("k_k", (d,), "linspace:0.76:0.66")
        yield ParamSpec("k_a", (d,), "constant:1.02")
        yield ParamSpec("r_k", (d,), "constant:-0.04")
        yield ParamSpec("head_norm.weight", (d,), "ones")
        yield ParamSpec("head_norm.bias", (d,), "zeros")
        yield ParamSpec("out_proj.weight", (d, d), "zeros", decay=True, autocast=True)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)], "shift": [(1, d)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp = ctx.ops, ctx.ops.xp
        B, S, d = x.shape
        heads = (B, S, self.heads, d // self.heads)
        cell, last = state
        last = xp.zeros_like(x[:, :1]) if last is None else last
        difference = xp.concatenate([last, x[:, :-1]], 1) - x
        shifted = {name: x + difference * p[f"mu_{name}"] for name in TOKEN_SHIFT}
        r, k, v = (ctx.linear(shifted[name], p, f"{name}_proj") for name in "rkv")
        w = ctx.linear(shifted["w"], p, "decay_down")
        p = {**p, "decay_up.bias": p["w0"], "rate_up.bias": p["a0"]}
        w = ctx.linear(xp.tanh(w), p, "decay_up")
        a = ctx.linear(shifted["a"], p, "rate_down")
        a = ctx.linear(a, p, "rate_up")
        g = ctx.linear(shifted["g"], p, "gate_down")
        g = ctx.linear(ops.activate(g, "sigmoid"), p, "gate_up")
        w = MIN_LOG_DECAY * ops.activate(w, "sigmoid")
        a = ops.activate(a, "sigmoid")
        kappa = unit(ctx, (k * p["k_k"]).reshape(heads))
        k = k * (1.0 + (a - 1.0) * p["k_a"])
        r, w, k, v, a = (y.reshape(heads) for y in (r, w, k, v, a))
        h, cell = ops.recurrence(
            r, k, v, w, read=kappa, removal=a * kappa, chunk_size=CHUNK_SIZE, state=cell
        )
        h = ops.head_norm(h, p["head_norm.weight"], heads[-1] * EPS) + p["head_norm.bias"]
        bonus = (r * k * p["r_k"].reshape(heads[2:])).sum(-1)[..., None] * v
        y = ctx.linear((h + bonus.reshape(B, S, d)) * g, p, "out_proj")
        return y, (cell, x[:, -1:])
