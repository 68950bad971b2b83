"""Gated linear attention: every element of a key forgets at a speed of its own.

    q, k, v, g = W u                             each (B, S, d), cut into heads of dh = d / heads
    alpha = sigmoid(W_up W_down u + b)^(1 / 16)  (B, S, d), through a bottleneck of `rank`
    S_t = diag(alpha_t) S_{t-1} + k_t v_t^T
    h_t = S_t^T q_t / sqrt(dh)
    y = W_out( SiLU(g) * RMSNorm_head(h) )

Matrices begin small, uniform with Glorot's bound times 2^-2.5, as the reference's do.

Source: Yang et al. 2024, Gated Linear Attention, arXiv:2312.06635; mad-lab.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

CHUNK_SIZE = 32
SLOWNESS = 16.0
"""Root that is taken of the gate, so that a head forgets slowly to begin with."""


@dataclass(frozen=True, kw_only=True)
class GLA(Layer):
    """Numbers of the layer: its heads, and the rank of the map to the gate."""

    name = "gla"
    about = "gated linear attention: every element of a key forgets at its own speed"

    heads: int = 8
    rank: int = 16

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        check_positive(rank=self.rank)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        for name in ("q_proj", "k_proj", "v_proj", "g_proj"):
            yield _glorot(f"{name}.weight", d, d, product=True)
        yield _glorot("decay_down.weight", self.rank, d)
        yield _glorot("decay_up.weight", d, self.rank)
        yield bias("decay_up.bias", d, self.rank)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield _glorot("out_proj.weight", d, d, product=True)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        q, k, v, g, low = run.linears(x, p, "q_proj", "k_proj", "v_proj", "g_proj", "decay_down")
        gate = run.linear(low, p, "decay_up")
        log_alpha = ops.activate(-xp.float32(gate), "softplus") / -SLOWNESS
        q, k, v, log_alpha = (
            y.reshape(B, S, self.heads, d // self.heads) for y in (q, k, v, log_alpha)
        )
        h, last = ops.recurrence(
            q,
            k,
            v,
            log_alpha,
            scale=q.shape[-1] ** -0.5,
            chunk_size=CHUNK_SIZE,
            state=state and state[0],
        )
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        return run.linear(ops.swiglu(g, h.reshape(B, S, d)), p, "out_proj"), (last,)


def _glorot(name: str, out: int, inputs: int, *, product: bool = False) -> ParamSpec:
    bound = 2**-2.5 * math.sqrt(6 / (out + inputs))
    return ParamSpec(name, (out, inputs), f"uniform:{bound!r}", decay=True, product=product)
