"""One batch as every backend receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""A label that counts in no loss, as in torch and transformers."""


@dataclass(frozen=True)
class Batch:
    """B sequences of S tokens with the token that follows each position.

    Attributes:
        x: inputs, (B, S) int32, C-contiguous.
        y: labels, (B, S) int32, C-contiguous; `y[:, t]` is the target of position t and equals
            `x[:, t + 1]` where both exist; `IGNORED` where there is nothing to predict.
        n_bytes: bytes of text that the counted labels decode to; document separators have none.
        seed: of what is random about the batch, such as dropout.
    """

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    n_bytes: int
    seed: int = 0

    def beginning(self, length: int) -> Batch:
        """Return the first tokens of every row; its `n_bytes` is their share."""
        x, y = (np.ascontiguousarray(tokens[:, :length]) for tokens in (self.x, self.y))
        return Batch(x, y, self.n_bytes * x.shape[1] // self.x.shape[1], self.seed)

    def part(self, start: int, stop: int) -> Batch:
        """Return rows start .. stop - 1; its `n_bytes` is the share of the rows."""
        x = self.x[start:stop]
        return Batch(x, self.y[start:stop], self.n_bytes * len(x) // len(self.x), self.seed + start)


def joined(parts: Sequence[Batch]) -> Batch:
    """Return the rows of one or more batches of one length, in order; the seed is the first's."""
    if len(parts) == 1:
        return parts[0]
    x, y = (
        np.concatenate(rows) for rows in zip(*((part.x, part.y) for part in parts), strict=True)
    )
    return Batch(x, y, sum(part.n_bytes for part in parts), parts[0].seed)
