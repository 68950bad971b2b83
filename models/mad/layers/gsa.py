"""Gated slot attention: softmax attention to a fixed number of slots that forget.

    q, k, v = SiLU(W u)                          each (B, S, d), cut into heads of dh = d / heads
    alpha = sigmoid(W_f u)^(1 / 8)               (B, S, heads, slots)
    K_t = diag(alpha_t) K_{t-1} + (1 - alpha_t) k_t^T        (slots, dh): a key of every slot
    V_t = diag(alpha_t) V_{t-1} + (1 - alpha_t) v_t^T        (slots, dh): a value of every slot
    h_t = V_t^T softmax(K_t q_t)
    y = W_out RMSNorm( SiLU(h) )

Both are the recurrence of `recurrence`, whose keys are the slots. K_t q_t reads it by value.

Source: Zhang et al. 2024, Gated Slot Attention, arXiv:2409.07146; flash-linear-attention.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

CHUNK_SIZE = 32
SLOWNESS = 8.0
"""Root that is taken of the gate, so that a slot forgets slowly to begin with."""


@dataclass(frozen=True, kw_only=True)
class GSA(Layer):
    """Numbers of the layer: its heads, and the slots of each."""

    name = "gsa"
    about = "gated slot attention: softmax attention to slots that forget"

    heads: int = 4
    slots: int = 32

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        check_positive(slots=self.slots)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield linear("qkv_proj.weight", 3 * d, d)
        yield linear("f_proj.weight", self.heads * self.slots, d, product=False)
        yield ParamSpec("out_norm.weight", (d,), "ones")
        yield linear("out_proj.weight", d, d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return {"cell": [(self.heads, self.slots, d // self.heads)] * 2}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        qkv, f = run.linears(x, p, "qkv_proj", "f_proj")
        qkv = ops.activate(qkv, "silu").reshape(B, S, 3, self.heads, -1)
        dt = ops.activate(-xp.float32(f), "softplus") / SLOWNESS
        q, k, v = (qkv[:, :, i] for i in range(3))
        h, last = slot_attention(ops, q, k, v, dt.reshape(B, S, self.heads, -1), state)
        h = ops.rms_norm(
            ops.activate(h.reshape(B, S, d), "silu"), p["out_norm.weight"], cfg.norm_eps
        )
        return run.linear(h, p, "out_proj"), last


def slot_attention(
    ops: Ops, q: Array, k: Array, v: Array, dt: Array, state: State | None
) -> tuple[Array, State]:
    """Return h (B, S, heads, dh) and the last K and V, (B, heads, slots, dh) each.

    Args:
        ops: the operators.
        q: (B, S, heads, dh).
        k: as q.
        v: as q.
        dt: -log alpha, (B, S, heads, slots), at least 0.
        state: K and V before the first position; None is zeros.
    """
    xp, (K, V) = ops.xp, state or (None, None)
    write = xp.tanh(dt / 2) * (1 + xp.exp(-dt))  # 1 - exp(-dt) without its cancellation
    scores, K = ops.recurrence(q, write, k, -dt, by_value=True, chunk_size=CHUNK_SIZE, state=K)
    h, V = ops.recurrence(xp.softmax(scores), write, v, -dt, chunk_size=CHUNK_SIZE, state=V)
    return h, (K, V)
