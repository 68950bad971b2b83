"""Both xLSTM families, Large and the stack of the first paper, as models of mlx-lm.

`mlxhog convert --format mlx-lm` copies this file as `xlstm.py` beside weights and config.json, and
mlx-lm's commands load it with `--trust-remote-code`. Parameters have the names of the checkpoints:
transformers' for xLSTM Large, the xlstm package's for the first paper. Names of MLX cannot begin
with an underscore: `_recurrent_kernel_` and `_bias_` are `recurrent_kernel` and `bias` here.

Shapes: B batch, S sequence, NH heads of DK and DV. A layer's state has the same size for every
length, so the cache of a prompt cannot be trimmed. Cells compute in float32.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517; Beck et al. 2025, xLSTM 7B, arXiv:2503.13427;
Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376 (chunkwise form).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache

MASKED = -1e30
"""Stands for -inf in exponents: it leaves no NaN in differences and gradients."""

MAX_EXPONENT = 80.0  # of the denominator's floor; an inf would have a NaN gradient
V1_CELL_EPS, V1_NORM_EPS = 1e-6, 1e-5  # in xLSTM Large they are fields of the config

Mask: TypeAlias = mx.array | None  # (B, S), false at padding
Cache: TypeAlias = ArraysCache | None

ACTIVATIONS = {"swish": "silu", "relu^2": "relu2"}  # others have the names of MLX
ALIASES = {
    "embedding_dim": "hidden_size",
    "num_blocks": "num_hidden_layers",
    "tie_weights": "tie_word_embeddings",
}
"""The xlstm package's names of fields."""


@dataclass
class ModelArgs(BaseModelArgs):
    """The fields of config.json: of transformers' xLSTMConfig, or of xLSTMLMModelConfig."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    model_type: str = "xlstm"  # or xlstm_v1
    tie_word_embeddings: bool = False
    chunk_size: int = 64
    # Of xLSTM Large.
    num_heads: int = 4
    use_bias: bool = False
    add_out_norm: bool = True
    out_norm_bias: bool = False
    norm_eps: float = 1e-6
    eps: float = 1e-6
    qk_dim_factor: float = 0.5
    v_dim_factor: float = 1.0
    ffn_proj_factor: float = 2.667
    ffn_round_up_to_multiple_of: int = 64
    gate_soft_cap: float = 15.0
    output_logit_soft_cap: float = 30.0
    # Of the first paper.
    mlstm_block: Any = None  # nested fields, of every block that is not in slstm_at
    slstm_block: Any = None
    slstm_at: tuple[int, ...] = ()
    add_post_blocks_norm: bool = True
    bias: bool = False

    @property
    def is_large(self) -> bool:
        """Whether it is xLSTM Large."""
        return self.model_type == "xlstm"

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "ModelArgs":
        """Read the fields of a config.json; others are ignored."""
        return super().from_dict({ALIASES.get(name, name): x for name, x in params.items()})


def soft_cap(x: mx.array, cap: float) -> mx.array:
    """Return cap * tanh(x / cap), float32."""
    return cap * mx.tanh(x.astype(mx.float32) / cap)


class RMSNorm(nn.RMSNorm):
    """RMSNorm of xLSTM Large, perhaps with a bias."""

    def __init__(self, args: ModelArgs, bias: bool | None = None) -> None:
        super().__init__(args.hidden_size, args.norm_eps)
        if args.use_bias if bias is None else bias:
            self.bias = mx.zeros(args.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        y = super().__call__(x)
        return y + self.bias if "bias" in self else y


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, which flattens heads: (B, S, NH, DV) -> (B, S, NH * DV).

    Its scale is weight + `offset`, in the first paper 1 + weight; without a weight it is 1.
    """

    def __init__(
        self, width: int, eps: float = V1_NORM_EPS, offset: int = 1, *, weight: bool = True,
        bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.eps, self.offset = eps, offset
        if weight:
            self.weight = mx.zeros(width)
        if bias:
            self.bias = mx.zeros(width)

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.fast.layer_norm(x, None, None, self.eps).reshape(*x.shape[:2], -1)
        if "weight" in self:
            y = y * (self.weight + self.offset)
        return y + self.bias if "bias" in self else y


class Gate(nn.Module):
    """Pre-activations of input or forget gates, one per head, float32; (B, S, width) -> (B, S, NH).

    It is no `nn.Linear`, so it is never quantized, and `mlx_lm.lora` gives it no adapter.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.weight, self.bias = mx.zeros((heads, width)), mx.zeros(heads)

    def __call__(self, x: mx.array) -> mx.array:
        weight, bias = self.weight.astype(mx.float32), self.bias.astype(mx.float32)
        return x.astype(mx.float32) @ weight.T + bias


class Diagonal(nn.Module):
    """Block-diagonal linear layer of `groups` blocks; its weight is (groups, out, in)."""

    def __init__(self, width: int, groups: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = mx.zeros((groups, width // groups, width // groups))
        if bias:
            self.bias = mx.zeros(width)

    def __call__(self, x: mx.array) -> mx.array:
        groups, _, width = self.weight.shape
        blocks = x.reshape(-1, groups, width).swapaxes(0, 1)
        y = (blocks @ self.weight.swapaxes(1, 2)).swapaxes(0, 1).reshape(x.shape)
        return y + self.bias if "bias" in self else y


class Conv(nn.Module):
    """silu(conv(x)), causal and depthwise, of x (B, S, width); weight (width, 1, K) as torch's.

    The first entry of the cache has the last K - 1 inputs.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.weight, self.bias = mx.zeros((width, 1, kernel)), mx.zeros(width)

    def __call__(self, x: mx.array, mask: Mask, cache: Cache) -> mx.array:
        K, (B, S, width) = self.weight.shape[-1], x.shape
        if mask is not None:
            x = mx.where(mask[..., None], x, 0)
        before = None if cache is None else cache[0]
        if before is None:
            before = mx.zeros((B, K - 1, width), x.dtype)
        x = mx.concatenate([before, x], 1)
        if cache is not None and cache.lengths is not None:  # rows end before their padding
            ends = mx.clip(cache.lengths, 0, S)[:, None] + mx.arange(K - 1)
            cache[0] = mx.take_along_axis(x, ends[..., None], 1)
        elif cache is not None:
            cache[0] = x[:, S:]
        taps = (x[:, j : j + S] * self.weight[:, 0, j] for j in range(K))
        return nn.silu(sum(taps, self.bias))


def mlstm_cell(
    q: mx.array, k: mx.array, v: mx.array, i: mx.array, f: mx.array, chunk_size: int, eps: float,
    mask: Mask, cache: Cache,
) -> mx.array:  # fmt: skip
    """Run the mLSTM cell over a sequence of any length, `chunk_size` positions in parallel.

    q and k (B, S, NH, DK), v (B, S, NH, DV); i and f (B, S, NH), pre-activations of the gates. The
    cache's last entries are C (B, NH, DK, DV), n (B, NH, DK) and m (B, NH); they, and the result
    (B, S, NH, DV), are float32. Positions where the mask (B, S) is false leave them as they are.

        m' = max(logsig(f) + m, i)       F = exp(logsig(f) + m - m')       I = exp(i - m')
        C = F C + I k v^T                n = F n + I k                     m = m'
        h = s C^T q / ( max(|s n.q|, exp(-m)) + eps )                      s = DK^-1/2
    """
    q, k, v, i, f = (x.astype(mx.float32).swapaxes(1, 2) for x in (q, k, v, i, f))
    q, lf = q * q.shape[-1] ** -0.5, -nn.softplus(-f)
    if mask is not None:
        i, lf = mx.where(mask[:, None], i, MASKED), mx.where(mask[:, None], lf, 0.0)
    (B, NH, S, DK), DV = q.shape, v.shape[-1]
    if cache is None or cache[-1] is None:
        C, n, m = mx.zeros((B, NH, DK, DV)), mx.zeros((B, NH, DK)), mx.zeros((B, NH))
    else:
        C, n, m = cache[-3], cache[-2], cache[-1]
    hs = []
    for start in range(0, S, chunk_size):
        part = [x[:, :, start : start + chunk_size] for x in (q, k, v, i, lf)]
        h, C, n, m = _mlstm_chunk(part, C, n, m, eps)
        hs.append(h)
    if cache is not None:
        cache[-3], cache[-2], cache[-1] = C, n, m
    return mx.concatenate(hs, 2).swapaxes(1, 2)


def _mlstm_chunk(
    part: list[mx.array], C: mx.array, n: mx.array, m: mx.array, eps: float
) -> tuple[mx.array, mx.array, mx.array, mx.array]:  # fmt: skip
    """Return h, C, n and m after a chunk, or one position, of q, k, v, i and logsig(f).

    With b the sum of logsig(f) from the start to t and u = i - b, the stabilizer of t is b + r,
    r_t = max(m, max_{j<=t} u_j), and the weight of j is exp(u_j - r_t). r only changes scales, and
    is a constant for gradients: h depends on it by eps alone.
    """
    q, k, v, i, lf = part
    b = mx.cumsum(lf, -1)
    u = i - b
    r = mx.stop_gradient(mx.maximum(m[..., None], mx.cummax(u, -1)))
    causal = mx.tri(u.shape[-1], dtype=mx.bool_)
    weights = mx.exp(mx.where(causal, u[..., None, :] - r[..., None], MASKED))
    scores, old = (q @ k.swapaxes(-1, -2)) * weights, mx.exp(m[..., None] - r)
    num = scores @ v + old[..., None] * (q @ C)
    den = scores.sum(-1) + old * (q @ n[..., None])[..., 0]
    floor = mx.exp(mx.minimum(-b - r, MAX_EXPONENT))
    h = num / (mx.maximum(mx.abs(den), floor) + eps)[..., None]
    k = mx.exp(u - r[..., -1:])[..., None] * k
    F = old[..., -1]
    C, n = F[..., None, None] * C + k.swapaxes(-1, -2) @ v, F[..., None] * n + k.sum(-2)
    return h, C, n, b[..., -1] + r[..., -1]


class LargeMLSTM(nn.Module):
    """mLSTM layer of xLSTM Large: Wout( sigmoid(o) * LN_head(mLSTM(q, k, v, i, f)) )."""

    states = 3

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        d, bias, self.args = args.hidden_size, args.use_bias, args
        qk, width = int(d * args.qk_dim_factor), int(d * args.v_dim_factor)
        self.q, self.k = nn.Linear(d, qk, bias), nn.Linear(d, qk, bias)
        self.v, self.ogate_preact = nn.Linear(d, width, bias), nn.Linear(d, width, bias)
        self.igate_preact, self.fgate_preact = (Gate(d, args.num_heads) for _ in range(2))
        self.multihead_norm = LayerNorm(width, args.norm_eps, 0, bias=bias)
        self.out_proj = nn.Linear(width, d, bias)

    def __call__(self, x: mx.array, mask: Mask, cache: Cache) -> mx.array:
        args = self.args
        heads = (*x.shape[:2], args.num_heads, -1)
        q, k, v = (layer(x).reshape(heads) for layer in (self.q, self.k, self.v))
        i, f = (soft_cap(g(x), args.gate_soft_cap) for g in (self.igate_preact, self.fgate_preact))
        h = mlstm_cell(q, k, v, i, f, args.chunk_size, args.eps, mask, cache)
        h = self.multihead_norm(h)
        return self.out_proj((mx.sigmoid(self.ogate_preact(x)) * h).astype(x.dtype))


class LargeFeedForward(nn.Module):
    """Feed-forward layer of xLSTM Large: Wdown( silu(Wgate x) * (Wup x) )."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        d, multiple = args.hidden_size, args.ffn_round_up_to_multiple_of
        width = int((d * args.ffn_proj_factor + multiple - 1) // multiple * multiple)
        self.proj_up_gate, self.proj_up = (nn.Linear(d, width, args.use_bias) for _ in range(2))
        self.proj_down = nn.Linear(width, d, args.use_bias)

    def __call__(self, x: mx.array, *_: object) -> mx.array:
        return self.proj_down(nn.silu(self.proj_up_gate(x)) * self.proj_up(x))


class MLSTMV1(nn.Module):
    """mLSTM layer of the first paper: Wdown( (LN_head(mLSTM(..)) + skip * c) * silu(z) )."""

    states = 4

    def __init__(self, args: ModelArgs, own: dict[str, Any]) -> None:
        super().__init__()
        width, bias = _rounded_width(args.hidden_size, own), args.bias
        self.heads, self.chunk_size = own["num_heads"], args.chunk_size
        self.proj_up = nn.Linear(args.hidden_size, 2 * width, bias)
        self.conv1d, self.mlstm_cell = nn.Module(), nn.Module()
        self.conv1d.conv = Conv(width, own["conv1d_kernel_size"])
        groups = width // own["qkv_proj_blocksize"]
        self.q_proj, self.k_proj, self.v_proj = (Diagonal(width, groups, bias) for _ in range(3))
        self.mlstm_cell.igate = Gate(3 * width, self.heads)
        self.mlstm_cell.fgate = Gate(3 * width, self.heads)
        self.mlstm_cell.outnorm = LayerNorm(width)
        self.learnable_skip = mx.ones(width)
        self.proj_down = nn.Linear(width, args.hidden_size, bias)

    def __call__(self, x: mx.array, mask: Mask, cache: Cache) -> mx.array:
        cell, heads = self.mlstm_cell, (*x.shape[:2], self.heads, -1)
        a, z = mx.split(self.proj_up(x), 2, -1)
        c = self.conv1d.conv(a, mask, cache)
        q, k, v = self.q_proj(c), self.k_proj(c), self.v_proj(a)
        gates = mx.concatenate([q, k, v], -1)
        i, f = cell.igate(gates), cell.fgate(gates)
        q, k, v = (y.reshape(heads) for y in (q, k, v))
        h = mlstm_cell(q, k, v, i, f, self.chunk_size, V1_CELL_EPS, mask, cache)
        y = (cell.outnorm(h) + self.learnable_skip * c) * nn.silu(z)
        return self.proj_down(y.astype(x.dtype))


class SLSTMV1(nn.Module):
    """sLSTM layer of the first paper: LN_head(sLSTM(i, f, z, o)), position by position.

    The checkpoints' name `fgate` is that of the input gate, and `igate` that of the forget gate
    (NX-AI/xlstm issue 98). R is block-diagonal over heads, and for the gates i, f, z, o:

        i~ = i + Ri h + bi,  and so f~, z~, o~
        m' = max(logsig(f~) + m, i~), or i~ where n is 0         I = exp(i~ - m')
        F = exp(logsig(f~) + m - m')
        c = F c + I tanh(z~)     n = F n + I     m = m'     h = sigmoid(o~) c / n
    """

    def __init__(self, d: int, own: dict[str, Any]) -> None:
        super().__init__()
        self.heads, kernel = own["num_heads"], own["conv1d_kernel_size"]
        self.conv1d, self.slstm_cell = nn.Module(), nn.Module()
        self.states = 4 + bool(kernel)
        if kernel:
            self.conv1d.conv = Conv(d, kernel)
        gates = (Diagonal(d, self.heads) for _ in range(4))
        self.fgate, self.igate, self.zgate, self.ogate = gates
        width = d // self.heads
        self.slstm_cell.recurrent_kernel = mx.zeros((self.heads, 4 * width, width))
        self.slstm_cell.bias = mx.zeros(4 * d)
        self.group_norm = LayerNorm(d, weight=own["group_norm_weight"])

    def __call__(self, x: mx.array, mask: Mask, cache: Cache) -> mx.array:
        (B, S, _), NH = x.shape, self.heads
        c_in = self.conv1d.conv(x, mask, cache) if "conv" in self.conv1d else x
        inputs = self.fgate(c_in), self.igate(c_in), self.zgate(x), self.ogate(x)
        gates = mx.stack([y.reshape(B, S, NH, -1) for y in inputs], 3).astype(mx.float32)
        DH = gates.shape[-1]
        gates = gates + self.slstm_cell.bias.reshape(4, NH, DH).swapaxes(0, 1)
        R = self.slstm_cell.recurrent_kernel.astype(mx.float32).swapaxes(1, 2)
        state = [mx.zeros((B, NH, DH))] * 4
        if cache is not None and cache[-1] is not None:
            state = [cache[at] for at in range(-4, 0)]
        hs = []
        for t in range(S):
            after = _slstm_step(gates[:, t], R, *state)
            if mask is not None:
                seen = mask[:, t, None, None]
                after = [mx.where(seen, y, x) for x, y in zip(state, after, strict=True)]
            state = after
            hs.append(state[0])
        if cache is not None:
            for at in range(4):
                cache[at - 4] = state[at]
        return self.group_norm(mx.stack(hs, 1)).astype(x.dtype)


def _slstm_step(
    gates: mx.array, R: mx.array, h: mx.array, c: mx.array, n: mx.array, m: mx.array
) -> list[mx.array]:
    """Return h, c, n and m (B, NH, DH) after a position; gates (B, NH, 4, DH), R (NH, DH, 4 DH)."""
    mixed = (h.swapaxes(0, 1) @ R).swapaxes(0, 1)
    i, f, z, o = (gates[:, :, at] + y for at, y in enumerate(mx.split(mixed, 4, -1)))
    kept = m - nn.softplus(-f)
    m = mx.where(n == 0, i, mx.maximum(i, kept))
    I, F = mx.exp(i - m), mx.exp(mx.minimum(kept - m, 0.0))  # noqa: E741  the paper's letters
    c, n = F * c + I * mx.tanh(z), F * n + I
    return [mx.sigmoid(o) * c / n, c, n, m]


class FeedForwardV1(nn.Module):
    """Gated feed-forward layer of the first paper: [g; p] = Wup x, Wdown( act(g) * p )."""

    def __init__(self, d: int, own: dict[str, Any]) -> None:
        super().__init__()
        width, act = _rounded_width(d, own), own["act_fn"]
        self.act = getattr(nn, ACTIVATIONS.get(act, act))
        self.proj_up = nn.Linear(d, 2 * width, own["bias"])
        self.proj_down = nn.Linear(width, d, own["bias"])

    def __call__(self, x: mx.array, *_: object) -> mx.array:
        gate, up = mx.split(self.proj_up(x), 2, -1)
        return self.proj_down(self.act(gate) * up)


def _rounded_width(d: int, own: dict[str, Any]) -> int:
    """Return d times the projection factor, rounded to a multiple as in the xlstm package."""
    rounding = math.ceil if own["round_proj_up_dim_up"] else math.floor
    multiple = own["round_proj_up_to_multiple_of"]
    return rounding(own["proj_factor"] * d / multiple) * multiple


SUBLAYERS = (
    ("norm_mlstm", "mlstm_layer"), ("norm_ffn", "ffn"),  # of xLSTM Large
    ("xlstm_norm", "xlstm"), ("ffn_norm", "ffn"),  # of the first paper
)  # fmt: skip
"""Names of norms and layers, in the order of use."""


class Block(nn.Module):
    """A sequence mixer and, in most blocks, a feed-forward layer: x + layer(norm(x)) of each."""

    def __init__(self, args: ModelArgs, number: int) -> None:
        super().__init__()
        d = args.hidden_size
        if args.is_large:
            self.norm_mlstm, self.mlstm_layer = RMSNorm(args), LargeMLSTM(args)
            self.norm_ffn, self.ffn = RMSNorm(args), LargeFeedForward(args)
        elif number not in args.slstm_at:
            self.xlstm_norm, self.xlstm = LayerNorm(d), MLSTMV1(args, args.mlstm_block["mlstm"])
        else:
            self.xlstm_norm, self.xlstm = LayerNorm(d), SLSTMV1(d, args.slstm_block["slstm"])
            if (ffn := args.slstm_block["feedforward"]) is not None:
                self.ffn_norm, self.ffn = LayerNorm(d), FeedForwardV1(d, ffn)

    def __call__(self, x: mx.array, mask: Mask, cache: Cache) -> mx.array:
        for norm, layer in SUBLAYERS:
            if norm in self:
                x = x + self[layer](self[norm](x), mask, cache)
        return x

    def make_cache(self) -> ArraysCache:
        """Return the cache of one sequence, before its first position."""
        return ArraysCache((self.mlstm_layer if "mlstm_layer" in self else self.xlstm).states)


class Model(nn.Module):
    """The language model: tokens (B, S) in, logits (B, S, vocab_size) out."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args, self.model_type, d = args, args.model_type, args.hidden_size
        stack, embedding = nn.Module(), nn.Embedding(args.vocab_size, d)
        stack.blocks = [Block(args, number) for number in range(args.num_hidden_layers)]
        if args.is_large:
            self.backbone, stack.embeddings = stack, embedding
            if args.add_out_norm:
                stack.out_norm = RMSNorm(args, args.out_norm_bias)
        else:
            self.xlstm_block_stack, self.token_embedding = stack, embedding
            if args.add_post_blocks_norm:
                stack.post_blocks_norm = LayerNorm(d)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(d, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[ArraysCache] | None = None) -> mx.array:
        """Return the logits, and advance the caches of all blocks."""
        is_large = self.args.is_large
        stack = self.backbone if is_large else self.xlstm_block_stack
        embedding = stack.embeddings if is_large else self.token_embedding
        x, mask = embedding(inputs), None
        if cache is not None:
            mask = cache[0].make_mask(inputs.shape[1])
        for block, own in zip(stack.blocks, cache or [None] * len(stack.blocks), strict=True):
            x = block(x, mask, own)
            if own is not None:
                own.advance(inputs.shape[1])
        if (norm := "out_norm" if is_large else "post_blocks_norm") in stack:
            x = stack[norm](x)
        y = embedding.as_linear(x) if self.args.tie_word_embeddings else self.lm_head(x)
        return soft_cap(y, self.args.output_logit_soft_cap) if is_large else y

    @property
    def layers(self) -> list[Block]:
        """The blocks."""
        return (self.backbone if self.args.is_large else self.xlstm_block_stack).blocks

    def make_cache(self) -> list[ArraysCache]:
        """Return the state of one sequence; of several, mlx-lm merges them."""
        return [block.make_cache() for block in self.layers]

    @property
    def quant_predicate(self) -> Callable[[str, nn.Module], bool]:
        """Whether a module may be quantized: matmuls and embeddings, but no gate."""
        return lambda path, module: hasattr(module, "to_quantized")

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights of a checkpoint by the names of MLX, without a copy of a tied head."""
        if self.args.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        names = {"_recurrent_kernel_": "recurrent_kernel", "_bias_": "bias"}
        split = ((name.rpartition("."), w) for name, w in weights.items())
        return {f"{stem}.{names.get(last, last)}": w for (stem, _, last), w in split}
