"""The memory that a gradient needs beside parameters and gradients, counted from a model's layers.

Between the forward and the backward pass a layer keeps, for each token, numbers in proportion to
the widths that it declares: the outputs of its linear layers, the residual stream around it, the
scores of a chunk, and the states between chunks. How many times each is kept depends on the
framework and the kernels: `KEPT`, fitted to the measurements of benchmarks/memory.py. Nothing here
knows a layer by name, so a layer of a plug-in is counted as ours are.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.model import ResidualBlock
from mlxhog.models.ops.operators import loss_rows

RECURRENCE_CHUNK = 16  # positions of a chunk of cells without a `chunk_size`


class Kept(NamedTuple):
    """How many times a kernel variant keeps each kind of numbers."""

    stream: float  # the residual stream of a sublayer
    outputs: float  # outputs of linear layers
    taps: float  # of convolutions, for each channel
    states: float  # states between chunks, per position of a chunk
    scores: float  # scores of a position and head with its chunk
    steps: float  # units of a cell that is computed position by position
    attention: float  # scores of a position and head with all positions
    logits: float  # logits of a chunk of the loss
    chunks: float = 1.0  # factor of these where the loss has several chunks and MLX runs ahead
    bfloat16: float = 1.0  # factor of all but the logits where matmuls are in bfloat16
    rounded: float = 0.0  # copies of matmul weights in bfloat16 until their gradients exist
    gradients: float = 0.0  # part of the gradients that exists beside all that is kept
    block: float = 1.0  # what a recomputed block needs, in parts of what it keeps otherwise
    heads: float = 1.0  # arrays as large as the head beside all gradients


KEPT: Mapping[tuple[str, str], Kept] = {
    #                    stream outputs taps states scores steps attention logits
    ("mlx", "eager"): Kept(
        15.0, 0.0, 4.1, 2.7, 1.9, 0.0, 2.3, 3.3, chunks=2.7, bfloat16=0.8, rounded=1.0, block=0.62
    ),
    ("torch", "eager"): Kept(13.4, 0.0, 0.0, 9.5, 1.5, 13.5, 0.1, 6.5, gradients=0.6),
    ("mlx", "native"): Kept(
        8.9, 0.0, 0.0, 5.8, 0.0, 0.0, 0.4, 0.3, gradients=0.94, block=1.45, heads=0.4
    ),
    ("torch", "native"): Kept(
        8.1, 0.0, 0.0, 3.5, 0.0, 0.0, 0.1, 0.3, gradients=0.63, block=1.4, heads=0.5
    ),
    # Counted, not measured: as eager ones, but the cells keep their states and no scores.
    ("mlx", "metal"): Kept(
        15.0, 0.0, 4.1, 2.0, 0.0, 8.0, 2.3, 3.3, chunks=2.7, bfloat16=0.8, rounded=1.0, block=0.62
    ),
    ("torch", "metal"): Kept(13.4, 0.0, 0.0, 2.0, 0.0, 8.0, 0.1, 6.5, gradients=0.6),
    # An emulated cell is evaluated while the graph is made: MLX frees nothing before the end.
    ("mlx", "metal-emulated"): Kept(22.4, 0.4, 0.4, 0.0, 42.3, 133.0, 2.4, 11.5, gradients=0.2),
    ("torch", "metal-emulated"): Kept(13.4, 0.0, 0.0, 9.5, 1.5, 13.5, 0.1, 6.5, gradients=0.6),
}
"""By framework and kernel variant, fitted to relative errors of the measurements."""


class Activations(NamedTuple):
    """Bytes of a gradient: at the loss, and at the end of its backward pass."""

    token_bytes: float  # kept for the backward pass, per token
    logit_bytes: float  # per token of the loss's chunk
    chunk_tokens: int  # tokens of the loss's chunk at most
    chunks: float  # see `Kept`
    loss_bytes: float = 0.0  # beside these at the loss
    gradient_bytes: int = 0  # of all gradients at the end, and what is beside them
    block_bytes: float = 0.0  # beside these, per token: of a block that is recomputed

    def of(self, tokens: int) -> float:
        """Return the bytes that a batch of this many tokens keeps for its backward pass."""
        several = self.chunks if tokens > self.chunk_tokens else 1.0
        loss_bytes = several * min(tokens, self.chunk_tokens) * self.logit_bytes
        return tokens * self.token_bytes + loss_bytes

    def peak(self, tokens: int) -> int:
        """Return the most bytes that exist at once."""
        at_end = self.gradient_bytes + tokens * self.block_bytes
        return int(max(at_end, self.of(tokens) + self.loss_bytes))

    def max_tokens(self, n_bytes: float) -> int:
        """Return the most tokens whose bytes fit."""
        at_end = n_bytes - self.gradient_bytes
        if at_end < 0:
            return 0
        n_bytes -= self.loss_bytes
        rest = n_bytes - self.chunks * self.chunk_tokens * self.logit_bytes
        if (tokens := int(rest // self.token_bytes)) <= self.chunk_tokens:
            one = int(n_bytes // (self.token_bytes + self.logit_bytes))
            tokens = max(0, min(one, self.chunk_tokens))
        return min(tokens, int(at_end // self.block_bytes)) if self.block_bytes else tokens


def activations(
    model: ModelConfig, framework: str, kernels: str, *, length: int, dtype: str = "float32",
    recompute: str = "none", candidates: int | None = None,
) -> Activations:  # fmt: skip
    """Count what a gradient keeps; sequences have `length` tokens.

    Args:
        model: its layers and their parameters.
        framework: "mlx" or "torch".
        kernels: the kernel variant, not "auto".
        length: positions of a sequence; attention keeps scores of all of them.
        dtype: of matmuls, "float32" or "bfloat16".
        recompute: "none", or "blocks": each block's input is kept, and what one block keeps.
        candidates: of sampled softmax, in place of the vocabulary.
    """
    kept, spec, head = KEPT[framework, kernels], model.layout.spec, families.head(model)
    d, blocks = model.hidden_size, list[float]()
    for block in model.layout.blocks:
        blocks.append(4 * sum(_kept(part, kept, length) for part in block))
    V = model.vocab_size if candidates is None else min(candidates, model.vocab_size)
    # The gradient of an embedding that is not tied has the rows of tokens alone.
    sizes = {n: 4 * one.size for n, one in spec.items() if one.trainable and one.kind == "dense"}
    if head in sizes:
        sizes[head] = 4 * V * d
    gradient_bytes = sum(sizes.values())
    if recompute == "blocks":
        token_bytes, loss_bytes = 4.0 * len(blocks) * d, 0.0
        block_bytes = token_bytes + kept.block * max(blocks, default=0.0)
    else:
        token_bytes, block_bytes = sum(blocks), 0.0
        loss_bytes = kept.gradients * gradient_bytes
        if dtype == "bfloat16":
            token_bytes *= kept.bfloat16
            loss_bytes += kept.rounded * 2 * sum(one.size for one in spec.values() if one.autocast)
    gradient_bytes += int(kept.heads * sizes.get(head, 0))
    chunks = 1.0 if recompute == "blocks" else kept.chunks  # then MLX waits, see `MLXCache`
    return Activations(
        token_bytes, 4 * kept.logits * V, loss_rows(V), chunks, loss_bytes, gradient_bytes,
        block_bytes,
    )  # fmt: skip


def _kept(part: ResidualBlock, kept: Kept, length: int) -> float:
    """Return the numbers that a sublayer keeps for each token."""
    layer, states = part.layer.at_width(part.d), part.layer.state_shapes(part.d, length)
    heads = getattr(layer, "heads", 1)
    chunk = min(length, getattr(layer, "chunk_size", RECURRENCE_CHUNK))
    cell = [math.prod(shape) for shape in states.get("cell", ())]
    floats = kept.stream * part.d
    for spec in part.spec:  # a matrix (out, in), a convolution (channels, 1, K), or blocks
        if len(spec.shape) == 3 and spec.shape[1] == 1:
            floats += kept.taps * spec.size
        elif len(spec.shape) > 1:
            floats += kept.outputs * math.prod(spec.shape[:-1])
    if layer.unrolled:
        return floats + kept.steps * sum(cell)
    if cell:
        return floats + kept.states * sum(cell) / chunk + kept.scores * heads * chunk
    return floats + kept.attention * heads * length * ("cache" in states)
