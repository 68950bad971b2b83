"""Multi-head causal attention to all positions, or to a window of the last ones.

    q, k, v = W u + b                            each cut into heads of dh = d / heads
    q, k = rope(q), rope(k)                      pair i turned by t * base^(-2 i / dh)
    y = W_out softmax(q k^T / sqrt(dh)) v + b

With `kv_heads`, heads / kv_heads neighbours share one head of keys and values. With `qk_norm` every
query and key is RMSNorm'd over its head before rope. Both are as in LFM2. The sliding form does not
see keys j < t - window.

Sources: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, RoFormer, arXiv:2104.09864; Ainslie
et al. 2023, grouped queries, arXiv:2305.13245; Beltagy et al. 2020, Longformer, arXiv:2004.05150
(sliding); mad-lab.
"""

from __future__ import annotations

from typing import Self, cast

from mlxhog.models.mad.layer import *

HEADS = 16  # heads of mad-lab's baselines, which are 128 wide
NARROW_HEAD = 16  # width of a head of narrower models


def default_heads(d: int, kv_heads: int | None) -> int:
    """Return the default number of heads of a layer.

    mad-lab's default is 16 heads for every width, and its candidates are 128 wide. At width 64
    heads would have 4 numbers, too few to distinguish keys; so below 128 heads are at least 16
    wide: 4 heads at width 64. If possible, the heads have an even width and `kv_heads` divides
    their number.
    """
    most = HEADS if d >= 8 * HEADS else max(1, d // NARROW_HEAD)
    fitting = (
        heads
        for heads in range(most, 0, -1)
        if d % heads == 0 and d // heads % 2 == 0 and heads % (kv_heads or 1) == 0
    )
    return next(fitting, HEADS)


@dataclass(frozen=True, kw_only=True)
class MHAttention(Layer):
    """Numbers of the layer.

    Attributes:
        heads: heads of queries; None depends on the width, see `default_heads`.
        kv_heads: heads of keys and values; None is the number of heads of queries.
        rope: rotate queries and keys by their positions.
        base: base of the wavelengths of rope.
        qk_norm: normalise queries and keys.
        bias: add one to every linear map.
    """

    name = "mh-attention"
    about = "softmax attention of several heads to all positions before"
    window = cast(int | None, None)  # number of earlier positions that a query sees; None for all

    heads: int | None = None
    kv_heads: int | None = None
    rope: bool = True
    base: float = 10_000.0
    qk_norm: bool = False
    bias: bool = True

    def heads_at(self, d: int) -> int:
        """Return the heads of queries at width d."""
        return default_heads(d, self.kv_heads) if self.heads is None else self.heads

    def at_width(self, d: int) -> Self:
        """Return the layer with the numbers that depend on width d."""
        return replace(self, heads=self.heads_at(d))

    def shared(self, d: int) -> int:
        """Return the number of heads of queries per head of keys and values."""
        return 1 if self.kv_heads is None else self.heads_at(d) // self.kv_heads

    def check(self, d: int) -> None:
        heads = self.heads_at(d)
        check_heads(heads, d)
        if self.rope and d // heads % 2:
            raise ConfigError(
                f"heads is {heads}, so each is {d // heads} wide, and rope turns pairs; "
                "choose heads of an even width, or rope=false"
            )
        kv = heads if self.kv_heads is None else self.kv_heads
        if kv < 1 or heads % kv:
            raise ConfigError(
                f"kv_heads is {kv}, which does not divide the {heads} heads; leave it out, or "
                "set it to a divisor"
            )
        if not self.base > 1:
            raise ConfigError(f"base is {self.base}; wavelengths need one above 1, such as 10000")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        kv = d // self.shared(d)
        for name, out in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            yield linear(f"{name}.weight", out, d)
            if self.bias:
                yield bias(f"{name}.bias", out, d)
        if self.qk_norm:
            yield ParamSpec("q_norm.weight", (d // self.heads_at(d),), "ones")
            yield ParamSpec("k_norm.weight", (d // self.heads_at(d),), "ones")
        yield linear("out_proj.weight", d, d)
        if self.bias:
            yield bias("out_proj.bias", d, d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of the keys, after rope, and values of every position that is seen."""
        heads, window = self.heads_at(d), self.window
        seen = length if window is None else min(length, window + 1)
        return {"cache": [(seen, heads // self.shared(d), d // heads)] * 2}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return an empty cache, and the positions read, (B,) int32.

        The keys of a row with fewer positions than the cache are the last ones.
        """
        return *super().init_state(d, B, xp), xp.zeros((B,), "int32")

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position.

        In the sliding form the cache has at most window + 1 positions.
        """
        ops, xp, window = run.ops, run.ops.xp, self.window
        B, S, d = x.shape
        width = d // self.heads_at(d)
        q, k, v = (
            y.reshape(B, S, -1, width) for y in run.linears(x, p, "q_proj", "k_proj", "v_proj")
        )
        if self.qk_norm:
            q = ops.rms_norm(q, p["q_norm.weight"], cfg.norm_eps)
            k = ops.rms_norm(k, p["k_norm.weight"], cfg.norm_eps)
        count = None if state is None else state[2]
        if self.rope:
            q, k = ops.rope(q, self.base, count), ops.rope(k, self.base, count)
        lengths = None
        if state is None:
            count = xp.full((B,), S, "int32", like=x)
        else:
            k, v = xp.concatenate([state[0], k], 1), xp.concatenate([state[1], v], 1)
            count = state[2] + S
            lengths = xp.minimum(count, k.shape[1])
        keys, values = k, v
        if (shared := self.shared(d)) > 1:
            keys, values = (xp.repeat(y, shared, 2) for y in (k, v))
        h = ops.attention(q, keys, values, window=window, lengths=lengths)
        y = run.linear(h.reshape(B, S, d), p, "out_proj")
        if window is not None:
            k, v = k[:, -(window + 1) :], v[:, -(window + 1) :]
        return y, (k, v, count)


@dataclass(frozen=True, kw_only=True)
class MHSlidingAttention(MHAttention):
    """Numbers of the layer: those of `MHAttention`, and the window of a position."""

    name = "mh-sliding-attention"
    about = "softmax attention of several heads to a window of positions"

    window: int = 32

    def check(self, d: int) -> None:
        super().check(d)
        if self.window < 0:
            raise ConfigError(f"window is {self.window}; a position sees 0 or more before it")
