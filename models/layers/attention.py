"""Softmax attention: causal, in a sliding window, and PaTH."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Self, cast

from mlxhog.config.options import option
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
from mlxhog.models.spec import ParamSpec

HEADS = 16  # of mad-lab's baselines, which are 128 wide
MIN_HEAD_WIDTH = 16  # in narrower models


def default_heads(d: int, kv_heads: int | None) -> int:
    """Return the default number of heads of a layer.

    mad-lab has 16 heads at every width, and its candidates are 128 wide. Heads of 4 at width 64 are
    too narrow to distinguish keys; so below width 128 heads are at least 16 wide. If possible,
    heads have an even width and `kv_heads` divides their number.
    """
    max_heads = HEADS if d >= 8 * HEADS else max(1, d // MIN_HEAD_WIDTH)
    fitting = (
        heads
        for heads in range(max_heads, 0, -1)
        if d % heads == 0 and d // heads % 2 == 0 and heads % (kv_heads or 1) == 0
    )
    return next(fitting, HEADS)


class _Heads(Layer):
    """A layer whose number of heads may depend on the width."""

    heads: int | None = None  # of queries; None depends on the width, see `default_heads`
    kv_heads = cast(int | None, None)

    def heads_at(self, d: int) -> int:
        """Return the heads of queries at width d."""
        return default_heads(d, self.kv_heads) if self.heads is None else self.heads

    def at_width(self, d: int) -> Self:
        return replace(self, heads=self.heads_at(d))


class MHAttention(_Heads):
    """Causal multi-head softmax attention.

        q, k, v = W u + b                            each cut into heads of dh = d / heads
        q, k = rope(q), rope(k)                      pair i rotated by t * base^(-2 i / dh)
        y = W_out softmax(q k^T / sqrt(dh)) v + b

    With `kv_heads`, groups of heads / kv_heads query heads share one head of keys and values
    (GQA). With `qk_norm` queries and keys are RMSNormed per head before rope. Both as in LFM2.

    Sources: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, RoFormer, arXiv:2104.09864;
    Ainslie et al. 2023, grouped queries, arXiv:2305.13245; mad-lab.
    """

    name = "mh-attention"
    keeps_bf16 = True
    window = cast(int | None, None)  # earlier positions that a query attends to; None for all

    kv_heads: int | None = None  # heads of keys and values; None is the number of `heads`
    rope: bool = True  # rotary position embedding
    base: float = 10_000.0  # of rope
    qk_norm: bool = False
    bias: bool = True  # in every linear layer

    def shared(self, d: int) -> int:
        """Return the number of query heads per head of keys and values."""
        return 1 if self.kv_heads is None else self.heads_at(d) // self.kv_heads

    def check(self, d: int) -> None:
        super().check(d)
        heads = self.heads_at(d)
        if self.rope and d // heads % 2:
            raise ConfigError(
                f"heads is {heads}, so each is {d // heads} wide, and rope rotates pairs; "
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
        yield from linear_params(d, bias=self.bias, q_proj=d, k_proj=kv, v_proj=kv)
        if self.qk_norm:
            yield from (ParamSpec(f"{name}_norm.weight", (dh,), "ones") for name in "qk")
        yield from linear_params(d, bias=self.bias, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of the cache of keys, after rope, and values.

        The keys of a row with fewer positions than the cache are the last ones.
        """
        heads, window = self.heads_at(d), self.window
        n_keys = length if window is None else min(length, window + 1)
        return {"cache": [(n_keys, heads // self.shared(d), d // heads)] * 2, "count": [()]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp, window = ctx.ops, ctx.ops.xp, self.window
        B, S, d = x.shape
        width = d // self.heads_at(d)
        q, k, v = (
            y.reshape(B, S, -1, width) for y in ctx.linears(x, p, "q_proj", "k_proj", "v_proj")
        )
        if self.qk_norm:
            q, k = ctx.norm(q, p, "q_norm"), ctx.norm(k, p, "k_norm")
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
        y = ctx.linear(h.reshape(B, S, d), p, "out_proj")
        if window is not None:
            k, v = k[:, -(window + 1) :], v[:, -(window + 1) :]
        return y, (k, v, count)


class MHSlidingAttention(MHAttention):
    """Multi-head softmax attention in a sliding window.

    Keys j < t - window are masked. Source: Beltagy et al. 2020, Longformer, arXiv:2004.05150.
    """

    name = "mh-sliding-attention"

    window: int = option(32, "earlier positions that a query attends to", low=0)


CHUNK_SIZE = 32
MASKED = -1e30
"""Score of a masked key."""


class PaTH(_Heads):
    """PaTH: softmax attention with keys reflected by later positions.

        q, k, v = W u                                cut into heads of dh = d / heads
        w = SiLU(conv_k(W_up W_down u)), w = w / |w| of every head, by RMSNorm
        beta = 2 sigmoid(W_b u + b)                  (B, S, heads)
        H_t = I - beta_t w_t w_t^T                   a reflection at beta = 2
        a_tj = q_t . (H_t H_{t-1} ... H_{j+1} k_j) / sqrt(dh)    for j <= t
        y = W_out softmax(a) v

    With `forget` (PaTH-FoX) a_tj also has the sum of logsigmoid(W_f u + b) over j < s <= t, over
    sqrt(dh). The cache has every key as reflected up to the last position, H_t ... H_{j+1} k_j.

    Positions are read in chunks. With W, K, Q the rows of a chunk, M_tj = beta_t w_t . w_j for
    j < t and T = (I + M)^-1 diag(beta), the product of its H is I - W^T T W (the UT transform), so
    with R = tril(Q W^T) T and X = tril(W K^T, -1)

        A = tril(Q K^T) - R X          the scores inside the chunk
        Q' = Q - R W                   the queries, relative to the start of the chunk
        K' = K - (W^T T X)^T           the keys, relative to its end

    R X, R W, W^T T X and W^T T W are the outputs and the last state of one `recurrence` with keys W
    and values (X, W). Then the chunks run in sequence; each attends to all earlier keys, and
    reflects them.

    Source: Yang et al. 2025, PaTH Attention, arXiv:2505.16381; flash-linear-attention; Lin et al.
    2025, Forgetting Transformer, arXiv:2503.02130.
    """

    name = "path"

    rank: int = 32  # width of the bottleneck of w
    conv: int = 3  # kernel size of the convolution of w
    forget: bool = False

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, q_proj=d, k_proj=d, v_proj=d, w_down=self.rank)
        yield from linear_params(self.rank, w_up=d)
        yield from conv_params("conv", d, self.conv)
        gates = dict.fromkeys(("b_proj", "f_proj")[: 1 + self.forget], self.heads_at(d))
        yield from linear_params(d, autocast=False, bias=True, outs=gates)
        yield from linear_params(d, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of keys and values, and with `forget` of the gate sums after each.

        The keys of a row with fewer positions than the cache are the last ones.
        """
        heads = self.heads_at(d)
        cache = [(length, heads, d // heads)] * 2 + [(length, heads)] * self.forget
        return {"cache": cache, "conv": [(self.conv - 1, d)], "count": [()]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp = ctx.ops, ctx.ops.xp
        B, S, d = x.shape
        heads = self.heads_at(d)
        *cache, conv, count = state
        names = ["q_proj", "k_proj", "v_proj", "w_down", "b_proj", "f_proj"][: 5 + self.forget]
        q, k, v, low, *gates = ctx.linears(x, p, *names)
        w, conv = ctx.conv(ctx.linear(low, p, "w_up"), p, conv)
        q, k, v, w = (y.reshape(B, S, heads, d // heads) for y in (q, k, v, w))
        w = ops.rms_norm(w, xp.full((w.shape[-1],), w.shape[-1] ** -0.5, like=w), ctx.norm_eps)
        beta, *logs = gates
        beta = 2 * xp.sigmoid(beta)
        if count is None:
            cache, count = [k[:, :0], v[:, :0], beta[:, :0]], xp.zeros((B,), "int32", like=x)
        log_forget = xp.log_sigmoid(logs[0]) if self.forget else None
        h, kept = reflected_attention(
            ops, q, k, v, w, beta, log_forget, tuple(cache[: 2 + self.forget]), count
        )
        return ctx.linear(h.reshape(B, S, d), p, "out_proj"), (*kept, conv, count + S)


def reflected_attention(
    ops: Ops, q: Array, k: Array, v: Array, w: Array, beta: Array, log_forget: Array | None,
    cache: State, count: Array,
) -> tuple[Array, State]:  # fmt: skip
    """Return h (B, S, heads, dh), and the cache with these positions.

    q, k, v and w are (B, S, heads, dh), w of norm 1 at most; beta (B, S, heads), 0 to 2;
    log_forget as beta, at most 0, None without a forget gate. The cache has keys and values
    (B, L, heads, dh) and, with a gate, its sums (B, L, heads), of the last of `count` (B,)
    positions.
    """
    xp, (B, S, _, D) = ops.xp, q.shape
    C = min(CHUNK_SIZE, 1 << (S - 1).bit_length())
    rest = [(0, 0), (0, -S % C), (0, 0), (0, 0)]

    def chunks(x: Array) -> Array:
        x = xp.pad(x, rest[: x.ndim])
        return x.reshape(-1, C, *x.shape[2:])

    def in_turn(x: Array) -> Sequence[Array]:
        return tuple(xp.unstack(x.reshape(B, -1, *x.shape[1:]), 1))

    q, k, w, beta = chunks(D**-0.5 * q), chunks(k), chunks(w), chunks(beta)
    rows, columns = q.swapaxes(1, 2), xp.permute(k, (0, 2, 3, 1))
    X = xp.tril(w.swapaxes(1, 2) @ columns, -1).swapaxes(1, 2)
    removed, moves = ops.recurrence(
        q,
        w,
        xp.concatenate([X, w], -1),
        xp.zeros_like(beta[..., None]),
        beta=beta,
        chunk_size=CHUNK_SIZE,
    )
    removed = removed.swapaxes(1, 2)
    inside = rows @ columns - removed[..., :C]
    of_start, of_end = rows - removed[..., C:], columns - moves[..., :C]
    gates: Sequence[Array | None] = [None] * (-(-S // C))
    if log_forget is not None:
        passed = xp.cumsum(chunks(D**-0.5 * log_forget), 1).swapaxes(1, 2)  # up to each
        inside = inside + passed[..., None] - passed[..., None, :]
        gates = in_turn(passed)
    position = xp.arange(0, C, like=q)
    inside = xp.where(position <= position[:, None], inside, MASKED)
    L, values = cache[0].shape[1], xp.concatenate([cache[1], v], 1)
    padded = xp.pad(values, rest).swapaxes(1, 2)
    keys = xp.permute(cache[0], (0, 2, 3, 1))  # (B, heads, dh, n)
    sums = cache[-1].swapaxes(1, 2)  # (B, heads, n), with a gate
    outputs = []
    parts = (in_turn(x) for x in (inside, of_start, of_end, moves[..., C:]))
    for scores, queries, new_keys, move, gate in zip(*parts, gates, strict=True):
        if n := keys.shape[-1]:
            earlier = queries @ keys
            if gate is not None:
                earlier = earlier + gate[..., None] + sums[:, :, None]
            if L:
                is_read = xp.arange(0, n, like=q) >= L - count[:, None]
                earlier = xp.where(is_read[:, None, None], earlier, MASKED)
            scores = xp.concatenate([earlier, scores], -1)
            new_keys = xp.concatenate([keys - move @ keys, new_keys], -1)
        keys = new_keys
        outputs.append(xp.softmax(scores) @ padded[:, :, : n + C])
        if gate is not None:
            sums = xp.concatenate([sums + gate[..., -1:], gate[..., -1:] - gate], -1)
    h = xp.concatenate(outputs, 2)[:, :, :S].swapaxes(1, 2)
    kept = xp.permute(keys[..., : L + S], (0, 3, 1, 2)), values
    return h, kept if log_forget is None else (*kept, sums[..., : L + S].swapaxes(1, 2))
