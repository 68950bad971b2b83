"""Softmax attention: to all positions before, and to a window of them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Self, cast

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Layer, Params, Run, Shapes, State, bias, linear
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec

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


class MHAttention(Layer):
    """Softmax attention of several heads to all positions before.

        q, k, v = W u + b                            each cut into heads of dh = d / heads
        q, k = rope(q), rope(k)                      pair i turned by t * base^(-2 i / dh)
        y = W_out softmax(q k^T / sqrt(dh)) v + b

    With `kv_heads`, heads / kv_heads neighbours share one head of keys and values. With `qk_norm`
    every query and key is RMSNorm'd over its head before rope. Both are as in LFM2.

    Sources: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, RoFormer, arXiv:2104.09864;
    Ainslie et al. 2023, grouped queries, arXiv:2305.13245; mad-lab.
    """

    name = "mh-attention"
    window = cast(int | None, None)  # number of earlier positions that a query sees; None for all

    heads: int | None = None  # of queries; None depends on the width, see `default_heads`
    kv_heads: int | None = None  # heads of keys and values; None is the number of `heads`
    rope: bool = True  # turn queries and keys by their positions
    base: float = 10_000.0  # of the wavelengths of rope
    qk_norm: bool = False
    bias: bool = True  # in every linear map

    def heads_at(self, d: int) -> int:
        """Return the heads of queries at width d."""
        return default_heads(d, self.kv_heads) if self.heads is None else self.heads

    def at_width(self, d: int) -> Self:
        return replace(self, heads=self.heads_at(d))

    def shared(self, d: int) -> int:
        """Return the number of heads of queries per head of keys and values."""
        return 1 if self.kv_heads is None else self.heads_at(d) // self.kv_heads

    def check(self, d: int) -> None:
        super().check(d)
        heads = self.heads_at(d)
        if self.rope and d // heads % 2:
            raise ConfigError(
                f"heads is {heads}, so each is {d // heads} wide, and rope turns pairs; "
                "choose heads of an even width, or rope=false"
            )
        if self.kv_heads is not None and heads % self.kv_heads:
            raise ConfigError(
                f"kv_heads is {self.kv_heads}, which does not divide the {heads} heads; leave it "
                "out, or set it to a divisor"
            )
        if not self.base > 1:
            raise ConfigError(f"base is {self.base}; wavelengths need one above 1, such as 10000")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        kv, dh = d // self.shared(d), d // self.heads_at(d)
        norms = [ParamSpec(f"{name}_norm.weight", (dh,), "ones") for name in "qk"]
        for name, out in (("q_proj", d), ("k_proj", kv), ("v_proj", kv), ("out_proj", d)):
            if self.qk_norm and name == "out_proj":
                yield from norms
            yield linear(f"{name}.weight", out, d)
            if self.bias:
                yield bias(f"{name}.bias", out, d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of the keys, after rope, and values of every position that is seen.

        The keys of a row with fewer positions than the cache are the last ones.
        """
        heads, window = self.heads_at(d), self.window
        seen = length if window is None else min(length, window + 1)
        return {"cache": [(seen, heads // self.shared(d), d // heads)] * 2, "count": [()]}

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        ops, xp, window = run.ops, run.ops.xp, self.window
        B, S, d = x.shape
        width = d // self.heads_at(d)
        q, k, v = (
            y.reshape(B, S, -1, width) for y in run.linears(x, p, "q_proj", "k_proj", "v_proj")
        )
        if self.qk_norm:
            q = ops.rms_norm(q, p["q_norm.weight"], run.norm_eps)
            k = ops.rms_norm(k, p["k_norm.weight"], run.norm_eps)
        *cache, count = state
        if self.rope:
            q, k = ops.rope(q, self.base, count), ops.rope(k, self.base, count)
        lengths = None
        if count is None:
            count = xp.full((B,), S, "int32", like=x)
        else:
            k, v = (xp.concatenate([a, b], 1) for a, b in zip(cache, (k, v), strict=True))
            count = count + S
            lengths = xp.minimum(count, k.shape[1])
        keys, values = k, v
        if (shared := self.shared(d)) > 1:
            keys, values = (xp.repeat(y, shared, 2) for y in (k, v))
        h = ops.attention(q, keys, values, window=window, lengths=lengths)
        y = run.linear(h.reshape(B, S, d), p, "out_proj")
        if window is not None:
            k, v = k[:, -(window + 1) :], v[:, -(window + 1) :]
        return y, (k, v, count)


class MHSlidingAttention(MHAttention):
    """Softmax attention of several heads to a window of positions.

    It does not see keys j < t - window. Source: Beltagy et al. 2020, Longformer, arXiv:2004.05150.
    """

    name = "mh-sliding-attention"
    may_be_0 = ("window",)

    window: int = 32
