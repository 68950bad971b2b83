"""A recurrent state as one array (B, N): a row holds the parts of one block after another."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Shapes = Sequence[Sequence[tuple[int, ...]]]
"""Of every part of every block, without the sequences of the batch."""


def pack(blocks: Sequence[Sequence[Float32]]) -> Float32:
    """Return a twin's state, a tuple of arrays (B, ...) per block, as (B, N)."""
    parts = [part.reshape(len(part), -1) for block in blocks for part in block]
    return np.concatenate(parts, axis=1)


def unpack(state: Float32, shapes: Shapes) -> list[tuple[Float32, ...]]:
    """Return a state (B, N) as a twin has it, as views."""
    blocks, at = [], 0
    for block in shapes:
        parts = []
        for shape in block:
            size = math.prod(shape)
            parts.append(state[:, at : at + size].reshape(len(state), *shape))
            at += size
        blocks.append(tuple(parts))
    return blocks
