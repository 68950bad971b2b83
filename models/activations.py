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

from mlxhog.models.families import ModelConfig
from mlxhog.models.model import ResidualBlock
from mlxhog.models.ops.operators import loss_rows

RECURRENCE_CHUNK = 16  # positions of a chunk of cells without a `chunk_size`


class Kept(NamedTuple):
    """How many times a kernel variant keeps each kind of numbers."""

    stream: float  # the residual stream of a sublayer
    outputs: float  # outputs of linear layers and convolutions
    states: float  # states between chunks, per position of a chunk
    scores: float  # scores of a position and head with its chunk
    steps: float  # units of a cell that is computed position by position
    attention: float  # scores of a position and head with all positions
    logits: float  # logits of a chunk of the loss
    chunks: float = 1.0  # factor of these where the loss has several chunks and MLX runs ahead
    bfloat16: float = 1.0  # factor of all but the logits where matmuls are in bfloat16
    gradients: float = 0.0  # part of the gradients that exists at the peak of the rest


KEPT: Mapping[tuple[str, str], Kept] = {
    #                    stream outputs states scores steps attention logits
    ("mlx", "eager"): Kept(0.0, 2.7, 7.15, 2.4, 0.0, 2.4, 3.2, chunks=3.5),
    ("torch", "eager"): Kept(13.4, 0.0, 9.5, 1.5, 13.5, 0.1, 6.5, gradients=0.6),
    ("mlx", "native"): Kept(11.3, 0.3, 3.9, 3.9, 2.0, 0.1, 0.1, gradients=0.95),
    ("torch", "native"): Kept(0.0, 1.6, 0.4, 0.0, 0.0, 0.1, 0.1, gradients=0.8),
    # Counted, not measured: as eager ones, but the cells keep their states and no scores.
    ("mlx", "metal"): Kept(0.0, 2.7, 2.0, 0.0, 8.0, 2.4, 3.2, chunks=3.5),
    ("torch", "metal"): Kept(13.4, 0.0, 2.0, 0.0, 8.0, 0.1, 6.5, gradients=0.6),
    # An emulated cell is evaluated while the graph is made: MLX frees nothing before the end.
    ("mlx", "metal-emulated"): Kept(22.4, 0.4, 0.0, 42.3, 133.0, 2.4, 11.5, gradients=0.2),
    ("torch", "metal-emulated"): Kept(13.4, 0.0, 9.5, 1.5, 13.5, 0.1, 6.5, gradients=0.6),
}
"""By framework and kernel variant: least squares of the relative errors of the measurements."""


class Activations(NamedTuple):
    """Bytes that a gradient keeps at its peak."""

    token_bytes: float  # per token
    logit_bytes: float  # per token of the loss's chunk
    chunk_tokens: int  # tokens of the loss's chunk at most
    chunks: float  # see `Kept`
    gradients: float  # likewise

    def of(self, tokens: int) -> float:
        """Return the bytes of a batch of this many tokens."""
        several = self.chunks if tokens > self.chunk_tokens else 1.0
        loss_bytes = several * min(tokens, self.chunk_tokens) * self.logit_bytes
        return tokens * self.token_bytes + loss_bytes

    def max_tokens(self, n_bytes: float) -> int:
        """Return the most tokens whose bytes fit."""
        rest = n_bytes - self.chunks * self.chunk_tokens * self.logit_bytes
        if (tokens := int(rest // self.token_bytes)) > self.chunk_tokens:
            return tokens
        one = int(n_bytes // (self.token_bytes + self.logit_bytes))
        return max(0, min(one, self.chunk_tokens))


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
    kept = KEPT[framework, kernels]
    factor = 4 * (kept.bfloat16 if dtype == "bfloat16" else 1.0)
    blocks = [sum(_kept(part, kept, length) for part in block) for block in model.layout.blocks]
    floats = sum(blocks)
    if recompute == "blocks":
        floats = len(blocks) * model.hidden_size + max(blocks, default=0.0)
    V = model.vocab_size if candidates is None else min(candidates, model.vocab_size)
    logit_bytes = 4 * kept.logits * V
    chunks = 1.0 if recompute == "blocks" else kept.chunks  # then MLX waits, see `MLXCache`
    return Activations(factor * floats, logit_bytes, loss_rows(V), chunks, kept.gradients)


def _kept(part: ResidualBlock, kept: Kept, length: int) -> float:
    """Return the numbers that a sublayer keeps for each token."""
    layer, states = part.layer.at_width(part.d), part.layer.state_shapes(part.d, length)
    heads = getattr(layer, "heads", 1)
    chunk = min(length, getattr(layer, "chunk_size", RECURRENCE_CHUNK))
    cell = [math.prod(shape) for shape in states.get("cell", ())]
    # A matrix (out, in), a convolution (channels, 1, K), or blocks (G, out, in).
    outputs = sum(math.prod(spec.shape[:-1]) for spec in part.spec if len(spec.shape) > 1)
    floats = kept.stream * part.d + kept.outputs * outputs
    if layer.unrolled:
        return floats + kept.steps * sum(cell)
    if cell:
        return floats + kept.states * sum(cell) / chunk + kept.scores * heads * chunk
    return floats + kept.attention * heads * length * ("cache" in states)
