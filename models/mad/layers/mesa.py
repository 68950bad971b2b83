"""MesaNet: the values of a query by the least-squares map from keys to values up to its position.

    q, k, v = W u                                cut into heads of dh = d / heads
    q, k = SiLU(conv_k(q, k))                    depthwise, causal
    q, k = q / |q|, k / |k|                      of every head, by RMSNorm
    g = logsigmoid(W_a u + b_a),  beta = sigmoid(W_b u + b_b)          (B, S, heads)
    H_t = exp(g_t) H_{t-1} + beta_t k_t k_t^T
    G_t = exp(g_t) G_{t-1} + beta_t k_t v_t^T
    h_t = G_t^T (H_t + diag(lambda))^-1 q_t      lambda = softplus(l) + 1 / 4, of every key channel
    y = W_out RMSNorm_head(h)

h_t is the prediction for q_t of the ridge regression of v on k, with beta and the decay as weights.
The inverse is at most `steps` steps of conjugate gradients, `regression_cell` with the keys
sqrt(beta) k. The published layer takes 30 steps. Without forgetting, at heads of width 32 and the
least lambda, 20 were off by 2e-5 of the solution after 128 positions, by 9e-5 after 1,024; with
forgetting fewer steps suffice. lambda begins at 1.

Sources: von Oswald et al. 2025, MesaNet, arXiv:2506.05233; flash-linear-attention.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

CHUNK_SIZE = 32
LEAST_LAMBDA = 0.25


@dataclass(frozen=True, kw_only=True)
class Mesa(Layer):
    """Numbers of the layer: heads, taps of the convolution, and steps of conjugate gradients."""

    name = "mesa"
    about = "MesaNet: a least-squares map from keys to values, solved per query"

    heads: int = 4
    conv: int = 4
    steps: int = 20

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        check_positive(conv=self.conv, steps=self.steps)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield linear("qk_proj.weight", 2 * d, d)
        yield linear("v_proj.weight", d, d)
        yield taps("conv.weight", 2 * d, self.conv)
        for name in ("a_proj", "b_proj"):
            yield linear(f"{name}.weight", self.heads, d, product=False)
            yield bias(f"{name}.bias", self.heads, d)
        start = 1 - LEAST_LAMBDA
        yield ParamSpec("lambda", (d,), f"inverse_softplus:{start}:{start}")
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)] * 2, "conv": [(self.conv - 1, 2 * d)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        heads = (B, S, self.heads, d // self.heads)
        H, G, conv = (None, None, None) if state is None else state
        qk, v, a, b = run.linears(x, p, "qk_proj", "v_proj", "a_proj", "b_proj")
        qk, conv = ops.causal_conv(qk, p["conv.weight"], None, state=conv, silu=True)
        # An RMSNorm makes heads of length 1 wherever they are longer than its eps.
        unit = xp.full_like(p["head_norm.weight"], heads[-1] ** -0.5)
        q, k = (
            ops.rms_norm(xp.float32(y).reshape(heads), unit, cfg.norm_eps)
            for y in (qk[..., :d], qk[..., d:])
        )
        log_decay = xp.log_sigmoid(xp.float32(a))[..., None]
        root = xp.exp(0.5 * xp.log_sigmoid(xp.float32(b)))[..., None]  # of beta
        k = root * k
        ridge = ops.activate(p["lambda"], "softplus") + LEAST_LAMBDA
        x_star, H = ops.regression_cell(
            q,
            k,
            log_decay,
            ridge.reshape(heads[-2:]),
            steps=self.steps,
            chunk_size=CHUNK_SIZE,
            state=H,
        )
        h, G = ops.recurrence(
            x_star, k, root * v.reshape(heads), log_decay, chunk_size=CHUNK_SIZE, state=G
        )
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        return run.linear(xp.astype(h, x).reshape(B, S, d), p, "out_proj"), (H, G, conv)
