"""RWKV-7's time mixing: a generalised delta rule, whose removal has a key and rates of its own.

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

The published layer adds a residual of the values of the model's first layer to those of later
ones. A layer of MAD sees no other layer, so this one has none, as the published first layer.
Parameters begin as those of the published first layer, but for two things: the second matrix of a
low-rank map is normal of the same size instead of orthogonal, and the biases w0 and a0 have no
zigzag within a head. Ranks follow from the width by the published rule.

Source: Peng et al. 2025, RWKV-7 "Goose", arXiv:2503.14456; github.com/BlinkDL/RWKV-LM.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *
from mlxhog.models.mad.layers.delta import CHUNK_SIZE, unit

FASTEST = -math.exp(-0.5)
"""Log of the smallest factor by which an element decays at a position."""

EPS = 1e-5
"""Epsilon of the norm of a head per element: 64e-5 at the published width of 64."""

MIXED = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""What is mixed with the token before; mu begins as 1 - (channel / d)^exponent."""


@dataclass(frozen=True, kw_only=True)
class RWKV7(Layer):
    """Numbers of the layer.

    Attributes:
        heads: of the memory.
        rank: of the maps to the decay and to the learning rate, None by the width.
        gate_rank: of the map to the gate, None by the width.
    """

    name = "rwkv7"
    about = "generalised delta rule: a removal key and rates of its own"

    heads: int = 4
    rank: int | None = None
    gate_rank: int | None = None

    def ranks(self, d: int) -> tuple[int, int]:
        """Rank of the maps to decay and learning rate, and of that to the gate, at width d."""
        rank, gate = (max(32, round(times * math.sqrt(d) / 32) * 32) for times in (2.5, 5.0))
        return (
            rank if self.rank is None else self.rank,
            gate if self.gate_rank is None else self.gate_rank,
        )

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        rank, gate_rank = self.ranks(d)
        check_positive(rank=rank, gate_rank=gate_rank)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        rank, gate_rank = self.ranks(d)
        for name, exponent in MIXED.items():
            yield ParamSpec(f"mu_{name}", (d,), f"powerlaw:1:0:{exponent}")
        for name, size in (("r", 0.5), ("k", 0.05), ("v", 0.5)):
            init = f"uniform:{size / math.sqrt(d)!r}"
            yield ParamSpec(f"{name}_proj.weight", (d, d), init, decay=True, product=True)
        for name, low in (("decay", rank), ("rate", rank), ("gate", gate_rank)):
            up = f"normal:{0.1 / math.sqrt(d)!r}"
            is_gate = name == "gate"
            yield ParamSpec(f"{name}_down.weight", (low, d), "zeros", decay=True, product=is_gate)
            yield ParamSpec(f"{name}_up.weight", (d, low), up, decay=True, product=is_gate)
        yield ParamSpec("w0", (d,), "linspace:-5.5:0.5")
        yield ParamSpec("a0", (d,), "linspace:-0.39:0.01")
        yield ParamSpec("k_k", (d,), "linspace:0.76:0.66")
        yield ParamSpec("k_a", (d,), "constant:1.02")
        yield ParamSpec("r_k", (d,), "constant:-0.04")
        yield ParamSpec("head_norm.weight", (d,), "ones")
        yield ParamSpec("head_norm.bias", (d,), "zeros")
        yield ParamSpec("out_proj.weight", (d, d), "zeros", decay=True, product=True)

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)], "shift": [(1, d)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        heads = (B, S, self.heads, d // self.heads)
        cell, last = (None, xp.zeros((B, 1, d), like=x)) if state is None else state
        moved = xp.concatenate([xp.astype(last, x), x[:, :-1]], 1) - x
        mixed = {name: x + moved * p[f"mu_{name}"] for name in MIXED}
        r, k, v = (ops.linears(mixed[name], [p[f"{name}_proj.weight"]])[0] for name in "rkv")
        w = run.linear(mixed["w"], p, "decay_down")
        (w,) = ops.linears(xp.tanh(w), [p["decay_up.weight"]], [p["w0"]])
        a = run.linear(mixed["a"], p, "rate_down")
        (a,) = ops.linears(a, [p["rate_up.weight"]], [p["a0"]])
        g = run.linear(mixed["g"], p, "gate_down")
        g = run.linear(ops.activate(g, "sigmoid"), p, "gate_up")
        w = FASTEST * ops.activate(xp.float32(w), "sigmoid")
        a = ops.activate(xp.float32(a), "sigmoid")
        kappa = unit(ops, (k * p["k_k"]).reshape(heads), cfg.norm_eps)
        k = k * (1.0 + (a - 1.0) * p["k_a"])
        r, w, k, v, a = (y.reshape(heads) for y in (r, w, k, v, a))
        h, cell = ops.recurrence(
            r, k, v, w, read=kappa, removal=a * kappa, chunk_size=CHUNK_SIZE, state=cell
        )
        h = ops.head_norm(h, p["head_norm.weight"], heads[-1] * EPS) + p["head_norm.bias"]
        bonus = (r * k * p["r_k"].reshape(heads[2:])).sum(-1)[..., None] * v
        y = run.linear((h + bonus.reshape(B, S, d)) * g, p, "out_proj")
        return y, (cell, xp.float32(x[:, -1:]))
