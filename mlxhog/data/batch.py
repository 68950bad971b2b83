"""A batch of training data, as every backend receives it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100  # a label that no loss counts, as in torch and transformers
LENGTHS = 32  # sequences of unequal lengths are padded to a multiple of this length


@dataclass(frozen=True)
class Batch:
    """B sequences of S tokens with the target of each position.

    `y[:, t]` is the target of position t and equals `x[:, t + 1]` where both exist; it is `IGNORED`
    where there is nothing to predict. With `frozen` no gradient flows into a sequence's context,
    its inputs before the first counted label.
    """

    x: NDArray[np.int32]  # inputs, (B, S), C-contiguous
    y: NDArray[np.int32]  # labels, (B, S), C-contiguous
    n_bytes: int  # of the original text of the counted labels, without separators
    seed: int = 0  # of the random numbers of this batch, such as dropout
    frozen: bool = False

    @property
    def n_labels(self) -> int:
        """Number of labels that the loss counts."""
        return int(np.count_nonzero(self.y != IGNORED))

    @property
    def n_tokens(self) -> int:
        """Number of inputs, without padding."""
        return int(_ends(self.y).sum())

    def behind_context(self) -> "tuple[Batch, NDArray[np.intp]]":
        """Return the sequences without their contexts, and the lengths of the contexts, (B,).

        The shortened sequences begin at position 0 and are padded to the longest.
        """
        lengths = (self.y != IGNORED).argmax(axis=1)
        rest = _ends(self.y) - lengths
        x, y = empty_rows(len(self.x), int(rest.max()))
        for row, (begin, n) in enumerate(zip(lengths.tolist(), rest.tolist(), strict=True)):
            x[row, :n], x[row, n:] = self.x[row, begin : begin + n], self.x[row, begin + n - 1]
            y[row, :n] = self.y[row, begin : begin + n]
        return Batch(x, y, self.n_bytes, self.seed), lengths

    def beginning(self, length: int) -> "Batch":
        """Return the first `length` tokens of every sequence, with that share of `n_bytes`."""
        x, y = (np.ascontiguousarray(tokens[:, :length]) for tokens in (self.x, self.y))
        n_bytes = self.n_bytes * x.shape[1] // self.x.shape[1]
        return Batch(x, y, n_bytes, self.seed, self.frozen)

    def part(self, start: int, stop: int) -> "Batch":
        """Return sequences start .. stop - 1; the shares of `n_bytes` of all parts sum to it."""
        x = self.x[start:stop]
        before, until = (self.n_bytes * n // len(self.x) for n in (start, start + len(x)))
        return Batch(x, self.y[start:stop], until - before, self.seed + start, self.frozen)


def padded(longest: int) -> int:
    """Return the padded length, so that a framework compiles for few shapes."""
    return LENGTHS * -(-max(longest, 1) // LENGTHS)


def empty_rows(count: int, longest: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return inputs and labels to fill for sequences of unequal lengths; labels are `IGNORED`."""
    width = padded(longest)
    return np.zeros((count, width), np.int32), np.full((count, width), IGNORED, np.int32)


def joined(parts: Sequence[Batch]) -> Batch:
    """Return the sequences of batches in order, padded to the widest, with the first seed."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.x.shape[1] for part in parts)
    more = [((0, 0), (0, width - part.x.shape[1])) for part in parts]
    x = [np.pad(part.x, pad, mode="edge") for part, pad in zip(parts, more, strict=True)]
    y = [np.pad(one.y, pad, constant_values=IGNORED) for one, pad in zip(parts, more, strict=True)]
    n_bytes, first = sum(part.n_bytes for part in parts), parts[0]
    return Batch(np.concatenate(x), np.concatenate(y), n_bytes, first.seed, first.frozen)


def _ends(y: NDArray[np.int32]) -> NDArray[np.intp]:
    """Return the end of each sequence's last counted label, (B,); the width if none counts."""
    return np.asarray(y.shape[1] - (y[:, ::-1] != IGNORED).argmax(axis=1), np.intp)
