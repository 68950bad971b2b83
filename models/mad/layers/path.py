"""PaTH attention: softmax attention whose keys are reflected by every position that they pass."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Self

from mlxhog.models.mad.layer import Layer, Params, Run, Shapes, State, bias, linear, maps, taps
from mlxhog.models.mad.layers.attention import default_heads
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec

CHUNK_SIZE = 32
UNSEEN = -1e30
"""Score of a key that a query does not see."""


class PaTH(Layer):
    """PaTH: softmax attention with keys reflected by the positions after them.

        q, k, v = W u                                cut into heads of dh = d / heads
        w = SiLU(conv_k(W_up W_down u)), w = w / |w| of every head, by RMSNorm
        beta = 2 sigmoid(W_b u + b)                  (B, S, heads)
        H_t = I - beta_t w_t w_t^T                   a reflection at beta = 2
        a_tj = q_t . (H_t H_{t-1} ... H_{j+1} k_j) / sqrt(dh)    for j <= t
        y = W_out softmax(a) v

    With `forget` (PaTH-FoX) a_tj also has the sum of logsigmoid(W_f u + b) over j < s <= t, over
    sqrt(dh). The cache has every key as the last position sees it, H_t ... H_{j+1} k_j.

    Positions are read in chunks. With W, K, Q the rows of a chunk, M_tj = beta_t w_t . w_j for
    j < t and T = (I + M)^-1 diag(beta), the product of its H is I - W^T T W (the UT transform), so
    with R = tril(Q W^T) T and X = tril(W K^T, -1)

        A = tril(Q K^T) - R X          the scores inside the chunk
        Q' = Q - R W                   the queries as the start of the chunk sees them
        K' = K - (W^T T X)^T           the keys as its end sees them

    R X, R W, W^T T X and W^T T W are the outputs and the last state of one `recurrence` with keys W
    and values (X, W). Then the chunks follow one another; each reads all keys before it and moves
    them on.

    Source: Yang et al. 2025, PaTH Attention, arXiv:2505.16381; flash-linear-attention; Lin et al.
    2025, Forgetting Transformer, arXiv:2503.02130.
    """

    name = "path"

    heads: int | None = None  # None depends on the width, see `default_heads`
    rank: int = 32  # width of the bottleneck of w
    conv: int = 3  # taps of the convolution of w
    forget: bool = False

    def heads_at(self, d: int) -> int:
        """Return the heads at width d."""
        return default_heads(d, None) if self.heads is None else self.heads

    def at_width(self, d: int) -> Self:
        return replace(self, heads=self.heads_at(d))

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from maps(d, q_proj=d, k_proj=d, v_proj=d, w_down=self.rank)
        yield from maps(self.rank, w_up=d)
        yield taps("conv.weight", d, self.conv)
        for name in ("b_proj", "f_proj")[: 1 + self.forget]:
            yield linear(f"{name}.weight", self.heads_at(d), d, product=False)
            yield bias(f"{name}.bias", self.heads_at(d), d)
        yield from maps(d, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of keys and values, and with `forget` of the sums of gates behind each.

        The keys of a row with fewer positions than the cache are the last ones.
        """
        heads = self.heads_at(d)
        cache = [(length, heads, d // heads)] * 2 + [(length, heads)] * self.forget
        return {"cache": cache, "conv": [(self.conv - 1, d)], "count": [()]}

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        heads = self.heads_at(d)
        *cache, conv, count = state
        names = ["q_proj", "k_proj", "v_proj", "w_down", "b_proj", "f_proj"][: 5 + self.forget]
        q, k, v, low, *gates = run.linears(x, p, *names)
        w = run.linear(low, p, "w_up")
        w, conv = ops.causal_conv(w, p["conv.weight"], None, state=conv, silu=True)
        q, k, v, w = (y.reshape(B, S, heads, d // heads) for y in (q, k, v, w))
        w = ops.rms_norm(w, xp.full((w.shape[-1],), w.shape[-1] ** -0.5, like=w), run.norm_eps)
        beta, *logs = (xp.float32(gate) for gate in gates)
        beta = 2 * xp.sigmoid(beta)
        if count is None:
            cache, count = [k[:, :0], v[:, :0], beta[:, :0]], xp.zeros((B,), "int32", like=x)
        log_forget = xp.log_sigmoid(logs[0]) if self.forget else None
        h, kept = reflected_attention(
            ops, q, k, v, w, beta, log_forget, tuple(cache[: 2 + self.forget]), count
        )
        return run.linear(xp.astype(h, x).reshape(B, S, d), p, "out_proj"), (*kept, conv, count + S)


def reflected_attention(
    ops: Ops,
    q: Array,
    k: Array,
    v: Array,
    w: Array,
    beta: Array,
    log_forget: Array | None,
    cache: State,
    count: Array,
) -> tuple[Array, State]:
    """Return h (B, S, heads, dh), and the cache with these positions.

    Args:
        ops: the operators.
        q: (B, S, heads, dh).
        k: as q.
        v: as q.
        w: as q, of length 1 at most.
        beta: (B, S, heads), 0 to 2.
        log_forget: as beta, at most 0; None without a forget gate.
        cache: keys, values (B, L, heads, dh) and, with a gate, its sums (B, L, heads).
        count: (B,), the number of positions before; the cache has the last ones.
    """
    xp, (B, S, _, D) = ops.xp, q.shape
    C = min(CHUNK_SIZE, 1 << (S - 1).bit_length())
    rest = [(0, 0), (0, -S % C), (0, 0), (0, 0)]

    def chunks(x: Array) -> Array:
        x = xp.pad(xp.float32(x), rest[: x.ndim])
        return x.reshape(-1, C, *x.shape[2:])

    def in_turn(x: Array) -> Sequence[Array]:
        return xp.unstack(x.reshape(B, -1, *x.shape[1:]), 1)

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
    inside = xp.where(position <= position[:, None], inside, UNSEEN)
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
                earlier = xp.where(is_read[:, None, None], earlier, UNSEEN)
            scores = xp.concatenate([earlier, scores], -1)
            new_keys = xp.concatenate([keys - move @ keys, new_keys], -1)
        keys = new_keys
        outputs.append(xp.softmax(scores) @ padded[:, :, : n + C])
        if gate is not None:
            sums = xp.concatenate([sums + gate[..., -1:], gate[..., -1:] - gate], -1)
    h = xp.concatenate(outputs, 2)[:, :, :S].swapaxes(1, 2)
    kept = xp.permute(keys[..., : L + S], (0, 3, 1, 2)), values
    return h, kept if log_forget is None else (*kept, sums[..., : L + S].swapaxes(1, 2))
