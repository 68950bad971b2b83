"""Kimi Delta Attention: the delta rule in a memory whose key elements decay at their own speeds.

    q, k, v = SiLU(conv_k(W u))                  depthwise, causal; heads of dh = d / heads
    q, k = q / |q| / sqrt(dh), k / |k|           of every head
    beta = sigmoid(W_b u)                        (B, S, heads), or twice that with negative = true
    a = -exp(A_log) softplus(W_up W_down u + bias)   (B, S, d), A_log per head
    S' = diag(exp(a_t)) S_{t-1}
    S_t = (I - beta_t k_t k_t^T) S' + beta_t k_t v_t^T
    h_t = S_t^T q_t
    y = W_out( sigmoid(G_up G_down u) * RMSNorm_head(h) )

Both low-rank maps have rank dh unless `rank` says otherwise. Softplus of the bias begins
log-uniform in 0.001 to 0.1, exp(A_log) uniform in 1 to 16.

Source: Kimi Team 2025, Kimi Linear, arXiv:2510.26692.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *
from mlxhog.models.mad.layers.delta import CHUNK_SIZE, DeltaRule, write_strength


@dataclass(frozen=True, kw_only=True)
class KDA(DeltaRule):
    """Numbers of the layer.

    Attributes:
        heads: of the memory.
        conv: taps of the convolution.
        rank: of the maps to the decay and to the gate, None d / heads.
        negative: whether eigenvalues may be negative.
    """

    name = "kda"
    about = "the delta rule in a memory whose key elements decay at their own speeds"

    rank: int | None = None
    negative: bool = False

    def low_rank(self, d: int) -> int:
        """Rank of the maps to the decay and to the gate at width d."""
        return d // self.heads if self.rank is None else self.rank

    def check(self, d: int) -> None:
        super().check(d)
        check_positive(rank=self.low_rank(d))

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        rank = self.low_rank(d)
        yield linear("qkv_proj.weight", 3 * d, d)
        yield taps("conv.weight", 3 * d, self.conv)
        yield linear("b_proj.weight", self.heads, d, product=False)
        yield linear("decay_down.weight", rank, d, product=False)
        yield linear("decay_up.weight", d, rank, product=False)
        yield ParamSpec("dt_bias", (d,), "inverse_softplus:0.001:0.1")
        yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        yield linear("gate_down.weight", rank, d)
        yield linear("gate_up.weight", d, rank)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        cell, conv = (None, None) if state is None else state
        u, b, a, g = run.linears(x, p, "qkv_proj", "b_proj", "decay_down", "gate_down")
        a = run.linear(a, p, "decay_up")
        g = run.linear(g, p, "gate_up")
        q, k, v, conv = self.query_key_value(ops, p["conv.weight"], u, conv, cfg.norm_eps)
        beta = write_strength(ops, b, self.negative)
        dt = ops.activate(xp.float32(a) + p["dt_bias"], "softplus").reshape(q.shape)
        log_decay = -xp.exp(p["A_log"])[:, None] * dt
        h, cell = ops.recurrence(q, k, v, log_decay, beta=beta, chunk_size=CHUNK_SIZE, state=cell)
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(x.shape)
        return run.linear(ops.glu(g, h, "sigmoid"), p, "out_proj"), (cell, conv)
