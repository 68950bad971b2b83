"""Linear attention: states S_t = decay S_{t-1} + k_t v_t^T.

Heads have the width dh = d / heads.
"""

import math
from collections.abc import Iterable
from typing import Any

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
from mlxhog.models.spec import ParamSpec, bound

CHUNK_SIZE = 32


class LinearAttention(Layer):
    """Linear attention with a product feature map in place of the softmax.

        q, k, v = W u                                each (B, S, d), cut into heads
        phi(x) = (W1 x) * (W2 x)                     dh -> dh, two for queries and two for keys
        S_t = S_{t-1} + phi(k_t) v_t^T,  z_t = z_{t-1} + phi(k_t)
        h_t = S_t^T phi(q_t) / max(|z_t . phi(q_t)|, floor)
        y = W_out h

    phi may be negative, so the denominator can be negative or 0. mad-lab divides by it plus 1e-12,
    which leads to NaN; here the divisor is its absolute value, at least `floor`. (In 600 steps of
    in-context recall the gradient norm reached 10,600 with a floor of 0.001, and 7 with 0.1.)

    Sources: Katharopoulos et al. 2020, Transformers are RNNs, arXiv:2006.16236; mad-lab.
    """

    name = "linear-attention"

    heads: int = 16
    floor: float = 0.1  # smallest divisor of the outputs

    def check(self, d: int) -> None:
        super().check(d)
        if not self.floor > 0:
            raise ConfigError(f"floor is {self.floor}; outputs are divided by it, set it above 0")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        dh = d // self.heads
        yield from linear_params(d, q_proj=d, k_proj=d, v_proj=d)
        for name in ("q_map", "k_map"):
            yield from linear_params(dh, outs={f"{name}.w1": dh, f"{name}.w2": dh})
        yield from linear_params(d, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh + 1)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp = ctx.ops, ctx.ops.xp
        q, k, v = ctx.linears(x, p, "q_proj", "k_proj", "v_proj", heads=self.heads)

        def phi(name: str, y: Array) -> Array:
            first, second = ctx.linears(y, p, f"{name}.w1", f"{name}.w2")
            return first * second

        q, k = phi("q_map", q), phi("k_map", k)
        # A column of ones beside the values sums the keys, z.
        ones = xp.ones_like(v[..., :1])
        v, log_decay = xp.concatenate([v, ones], -1), xp.zeros_like(ones)
        h, last = ops.recurrence(q, k, v, log_decay, chunk_size=16, state=state[0])
        h = h[..., :-1] / xp.maximum(xp.abs(h[..., -1:]), self.floor)
        return ctx.linear(h.reshape(x.shape), p, "out_proj"), (last,)


class GLA(Layer):
    """Gated linear attention: a decay per key element.

        q, k, v, g = W u                             each (B, S, d), cut into heads
        alpha = sigmoid(W_up W_down u + b)^(1 / 16)  (B, S, d), through a bottleneck of `rank`
        S_t = diag(alpha_t) S_{t-1} + k_t v_t^T
        h_t = S_t^T q_t / sqrt(dh)
        y = W_out( SiLU(g) * RMSNorm_head(h) )

    The root of the gate makes the initial decay slow. Matrices begin uniform with Glorot's bound
    times 2^-2.5, as in the reference.

    Source: Yang et al. 2024, Gated Linear Attention, arXiv:2312.06635; mad-lab.
    """

    name = "gla"

    heads: int = 8
    rank: int = 16

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        def glorot(sizes: int) -> str:
            return f"uniform:{2**-2.5 * math.sqrt(6 / sizes)!r}"

        yield from linear_params(d, init=glorot(2 * d), q_proj=d, k_proj=d, v_proj=d, g_proj=d)
        rank, init = self.rank, glorot(d + self.rank)
        yield from linear_params(d, init=init, autocast=False, decay_down=rank)
        yield from linear_params(rank, init=init, autocast=False, decay_up=d)
        yield ParamSpec("decay_up.bias", (d,), bound(rank))
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield from linear_params(d, init=glorot(2 * d), out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, heads = ctx.ops, (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        q, k, v, g, low = ctx.linears(x, p, "q_proj", "k_proj", "v_proj", "g_proj", "decay_down")
        gate = ctx.linear(low, p, "decay_up")
        log_alpha = ops.activate(-gate, "softplus") / -16.0
        q, k, v, log_alpha = (y.reshape(heads) for y in (q, k, v, log_alpha))
        how: dict[str, Any] = {"scale": heads[-1] ** -0.5, "chunk_size": CHUNK_SIZE}
        h, last = ops.recurrence(q, k, v, log_alpha, state=state[0], **how)
        return ctx.gated_output(h, p, g), (last,)


class GSA(Layer):
    """Gated slot attention: softmax attention to slots with a decay.

        q, k, v = SiLU(W u)                          each (B, S, d), cut into heads
        alpha = sigmoid(W_f u)^(1 / 8)               (B, S, heads, slots)
        K_t = diag(alpha_t) K_{t-1} + (1 - alpha_t) k_t^T        (slots, dh): a key of every slot
        V_t = diag(alpha_t) V_{t-1} + (1 - alpha_t) v_t^T        (slots, dh): a value of every slot
        h_t = V_t^T softmax(K_t q_t)
        y = W_out RMSNorm( SiLU(h) )

    Both are `recurrence` with slots as keys; K_t q_t has `transpose_state`.

    Source: Zhang et al. 2024, Gated Slot Attention, arXiv:2409.07146; flash-linear-attention.
    """

    name = "gsa"

    heads: int = 4
    slots: int = 32

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, qkv_proj=3 * d)
        yield from linear_params(d, autocast=False, f_proj=self.heads * self.slots)
        yield ParamSpec("out_norm.weight", (d,), "ones")
        yield from linear_params(d, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return {"cell": [(self.heads, self.slots, d // self.heads)] * 2}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, (B, S, d) = ctx.ops, x.shape
        qkv, f = ctx.linears(x, p, "qkv_proj", "f_proj")
        qkv = ops.activate(qkv, "silu").reshape(B, S, 3, self.heads, -1)
        dt = ops.activate(-f, "softplus") / 8.0
        q, k, v = (qkv[:, :, i] for i in range(3))
        h, last = slot_attention(ops, q, k, v, dt.reshape(B, S, self.heads, -1), state)
        h = ops.activate(h.reshape(B, S, d), "silu")
        return ctx.linear(ctx.norm(h, p, "out_norm"), p, "out_proj"), last


def slot_attention(
    ops: Ops, q: Array, k: Array, v: Array, dt: Array, state: State
) -> tuple[Array, State]:
    """Return h, as q, k and v (B, S, heads, dh), and the last K and V, (B, heads, slots, dh) each.

    dt is -log alpha, (B, S, heads, slots), at least 0; state is K and V.
    """
    xp, (K, V) = ops.xp, state
    k_slot = xp.tanh(dt / 2) * (1 + xp.exp(-dt))  # 1 - exp(-dt) without cancellation
    how: dict[str, Any] = {"chunk_size": CHUNK_SIZE}
    scores, K = ops.recurrence(q, k_slot, k, -dt, transpose_state=True, state=K, **how)
    h, V = ops.recurrence(xp.softmax(scores), k_slot, v, -dt, state=V, **how)
    return h, (K, V)


MIN_LAMBDA = 0.25


class Mesa(Layer):
    """MesaNet: ridge regression of values on keys, solved per query.

        q, k, v = W u                                cut into heads
        q, k = SiLU(conv_k(q, k))                    depthwise, causal
        q, k = q / |q|, k / |k|                      of every head, by RMSNorm
        g = logsigmoid(W_a u + b_a),  beta = sigmoid(W_b u + b_b)          (B, S, heads)
        H_t = exp(g_t) H_{t-1} + beta_t k_t k_t^T
        G_t = exp(g_t) G_{t-1} + beta_t k_t v_t^T
        h_t = G_t^T (H_t + diag(lambda))^-1 q_t      lambda = softplus(l) + 1 / 4, of every key
        y = W_out RMSNorm_head(h)                    channel; it begins at 1

    h_t is the prediction for q_t of the ridge regression of v on k, with beta and the decay as
    weights. The inverse is at most `steps` steps of conjugate gradients, `regression_cell` with the
    keys sqrt(beta) k. The published layer has 30 steps. Without decay, at heads of width 32 and the
    least lambda, 20 steps have an error of 2e-5 of the solution after 128 positions, of 9e-5 after
    1,024; with a decay fewer suffice.

    Sources: von Oswald et al. 2025, MesaNet, arXiv:2506.05233; flash-linear-attention.
    """

    name = "mesa"

    heads: int = 4
    conv: int = 4  # kernel size of the convolution
    steps: int = 20

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, qk_proj=2 * d, v_proj=d)
        yield from conv_params("conv", 2 * d, self.conv)
        yield from linear_params(d, autocast=False, bias=True, a_proj=self.heads, b_proj=self.heads)
        start = 1 - MIN_LAMBDA
        yield ParamSpec("lambda", (d,), f"inverse_softplus:{start}:{start}")
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield from linear_params(d, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)] * 2, "conv": [(self.conv - 1, 2 * d)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp, (H, G, conv) = ctx.ops, ctx.ops.xp, state
        B, S, d = x.shape
        heads = (B, S, self.heads, d // self.heads)
        qk, v, a, b = ctx.linears(x, p, "qk_proj", "v_proj", "a_proj", "b_proj")
        qk, conv = ctx.conv(qk, p, conv)
        # RMSNorm scales heads to norm 1, unless they are shorter than its eps.
        unit = xp.full_like(p["head_norm.weight"], heads[-1] ** -0.5)
        q, k = (
            ops.rms_norm(y.reshape(heads), unit, ctx.norm_eps) for y in (qk[..., :d], qk[..., d:])
        )
        log_decay = xp.log_sigmoid(a)[..., None]
        root = xp.exp(0.5 * xp.log_sigmoid(b))[..., None]  # of beta
        k = root * k
        ridge = (ops.activate(p["lambda"], "softplus") + MIN_LAMBDA).reshape(heads[-2:])
        how: dict[str, Any] = {"chunk_size": CHUNK_SIZE}
        solution, H = ops.regression_cell(q, k, log_decay, ridge, steps=self.steps, state=H, **how)
        h, G = ops.recurrence(solution, k, root * v.reshape(heads), log_decay, state=G, **how)
        h = ops.rms_norm(h, p["head_norm.weight"], ctx.norm_eps)
        return ctx.linear(h.reshape(B, S, d), p, "out_proj"), (H, G, conv)
