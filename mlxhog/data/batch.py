"""One batch as every backend receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""A label that counts in no loss, as in torch and transformers."""

LENGTHS = 32
"""Rows of unequal lengths are filled up to a multiple of it."""


@dataclass(frozen=True)
class Batch:
    """B sequences of S tokens with the token that follows each position.

    Attributes:
        x: inputs, (B, S) int32, C-contiguous.
        y: labels, (B, S) int32, C-contiguous; `y[:, t]` is the target of position t and equals
            `x[:, t + 1]` where both exist; `IGNORED` where there is nothing to predict.
        n_bytes: bytes of text that the counted labels decode to; document separators have none.
        seed: of what is random about the batch, such as dropout.
        frozen: whether no gradient flows through a row's context, the inputs whose labels are not
            counted before the first that is: their recurrent state is read, and nothing is learnt
            of how it comes about.
    """

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    n_bytes: int
    seed: int = 0
    frozen: bool = False

    @property
    def n_labels(self) -> int:
        """Labels that count."""
        return int(np.count_nonzero(self.y != IGNORED))

    @property
    def n_tokens(self) -> int:
        """Inputs without the padding that stands behind a row's last counted label."""
        return int(_ends(self.y).sum())

    def behind_context(self) -> tuple[Batch, NDArray[np.intp]]:
        """Return the rows without their contexts, and the lengths of these, (B,).

        What is left begins at the first position; the batch is as wide as its longest row needs.
        """
        lengths = (self.y != IGNORED).argmax(axis=1)
        rest = _ends(self.y) - lengths
        x, y = empty_rows(len(self.x), int(rest.max()))
        for row, (begin, n) in enumerate(zip(lengths.tolist(), rest.tolist(), strict=True)):
            x[row, :n], x[row, n:] = self.x[row, begin : begin + n], self.x[row, begin + n - 1]
            y[row, :n] = self.y[row, begin : begin + n]
        return Batch(x, y, self.n_bytes, self.seed), lengths

    def beginning(self, length: int) -> Batch:
        """Return the first tokens of every row; its `n_bytes` is their share."""
        x, y = (np.ascontiguousarray(tokens[:, :length]) for tokens in (self.x, self.y))
        n_bytes = self.n_bytes * x.shape[1] // self.x.shape[1]
        return Batch(x, y, n_bytes, self.seed, self.frozen)

    def part(self, start: int, stop: int) -> Batch:
        """Return rows start .. stop - 1; its `n_bytes` is the share of the rows."""
        x = self.x[start:stop]
        n_bytes = self.n_bytes * len(x) // len(self.x)
        return Batch(x, self.y[start:stop], n_bytes, self.seed + start, self.frozen)


def empty_rows(count: int, longest: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return inputs and labels to fill, of which none counts; for rows of unequal lengths.

    Their width is a multiple of `LENGTHS`: a framework compiles for few shapes.
    """
    width = LENGTHS * -(-max(longest, 1) // LENGTHS)
    return np.zeros((count, width), np.int32), np.full((count, width), IGNORED, np.int32)


def joined(parts: Sequence[Batch]) -> Batch:
    """Return the rows of one or more batches, in order, as wide as the widest.

    The seed is the first's.
    """
    if len(parts) == 1:
        return parts[0]
    width = max(part.x.shape[1] for part in parts)
    x = np.concatenate([_widened(part.x, width, mode="edge") for part in parts])
    y = np.concatenate(
        [_widened(part.y, width, mode="constant", constant_values=IGNORED) for part in parts]
    )
    n_bytes = sum(part.n_bytes for part in parts)
    return Batch(x, y, n_bytes, parts[0].seed, parts[0].frozen)


def _widened(rows: NDArray[np.int32], width: int, **how: Any) -> NDArray[np.int32]:
    """Fill up the ends of rows."""
    more = width - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, more)), **how) if more else rows


def _ends(y: NDArray[np.int32]) -> NDArray[np.intp]:
    """Where each row's last counted label ends, (B,); its width where none counts."""
    return np.asarray(y.shape[1] - (y[:, ::-1] != IGNORED).argmax(axis=1), np.intp)
