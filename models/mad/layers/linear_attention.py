"""Linear attention: a product of two linear maps for the softmax's feature map.

    q, k, v = W u                                each (B, S, d), cut into heads of dh = d / heads
    phi(x) = (W1 x) * (W2 x)                     dh -> dh, two for queries and two for keys
    S_t = S_{t-1} + phi(k_t) v_t^T,  z_t = z_{t-1} + phi(k_t)
    h_t = S_t^T phi(q_t) / max(|z_t . phi(q_t)|, floor)
    y = W_out h

phi may be negative, so the denominator can be negative or 0. mad-lab divides by it plus 1e-12,
which leads to NaN; here the divisor is its absolute value, at least `floor`. (In 600 steps of
in-context recall the norm of the gradient reached 10,600 with a floor of 0.001, and 7 with 0.1.)

Sources: Katharopoulos et al. 2020, Transformers are RNNs, arXiv:2006.16236; mad-lab.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

CHUNK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class LinearAttention(Layer):
    """Numbers of the layer: its heads, and the smallest divisor of the outputs."""

    name = "linear-attention"
    about = "attention with a product of feature maps in place of the softmax"

    heads: int = 16
    floor: float = 0.1

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        if not self.floor > 0:
            raise ConfigError(f"floor is {self.floor}; outputs are divided by it, set it above 0")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        dh = d // self.heads
        for name in ("q_proj", "k_proj", "v_proj"):
            yield linear(f"{name}.weight", d, d)
        for name in ("q_map", "k_map"):
            yield linear(f"{name}.w1.weight", dh, dh)
            yield linear(f"{name}.w2.weight", dh, dh)
        yield linear("out_proj.weight", d, d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh + 1)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        q, k, v = (
            y.reshape(B, S, self.heads, d // self.heads)
            for y in run.linears(x, p, "q_proj", "k_proj", "v_proj")
        )
        q, k = _features(p, "q_map", q, run), _features(p, "k_map", k, run)
        # A column of ones beside the values sums the keys, z; a log-decay of 0 forgets nothing.
        ones = xp.ones_like(v[..., :1])
        h, last = ops.recurrence(
            q,
            k,
            xp.concatenate([v, ones], -1),
            xp.zeros_like(ones),
            chunk_size=CHUNK_SIZE,
            state=state and state[0],
        )
        h = h[..., :-1] / xp.maximum(xp.abs(h[..., -1:]), self.floor)
        return run.linear(h.reshape(B, S, d), p, "out_proj"), (last,)


def _features(p: Params, name: str, x: Array, run: Pass[Array]) -> Array:
    """Return phi(x) of every head."""
    first, second = run.linears(x, p, f"{name}.w1", f"{name}.w2")
    return first * second
