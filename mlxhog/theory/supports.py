"""Supports of sampled gradients as bitmaps: which coordinates each of S gradients touches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Supports:
    """S subsets of n coordinates.

    Attributes:
        bits: (S, ceil(n / 8)) uint8, C-contiguous; coordinate v of sample s is bit `v % 8`, counted
            from the lowest, of `bits[s, v // 8]`. Bits beyond n are 0.
        n: number of coordinates, > 0.

    Raises:
        ShapeError: `bits` has another shape or type, or a bit beyond n is set.
    """

    bits: NDArray[np.uint8]
    n: int

    def __post_init__(self) -> None:
        """Check the bitmaps."""
        bits, n = self.bits, self.n
        if n < 1:
            raise ShapeError(f"supports over {n} coordinates; a block has at least one")
        if bits.dtype != np.uint8 or bits.ndim != 2 or bits.shape[1] != (n + 7) // 8:
            raise ShapeError(
                f"supports of {n} coordinates have bits of shape {bits.shape} and type "
                f"{bits.dtype}; wanted (samples, {(n + 7) // 8}) uint8, see Supports.from_masks"
            )
        if n % 8 and (bits[:, -1] >> (n % 8)).any():
            raise ShapeError(f"supports of {n} coordinates have a coordinate {n} or above")
        if not bits.flags.c_contiguous:
            object.__setattr__(self, "bits", np.ascontiguousarray(bits))

    @classmethod
    def from_lists(
        cls, supports: Iterable[Sequence[int] | NDArray[np.integer]], n: int
    ) -> Supports:
        """Supports given as lists of coordinates in [0, n), in any order.

        Raises:
            ShapeError: a coordinate lies outside [0, n).
        """
        rows = []
        for s, support in enumerate(supports):
            listed = np.asarray(support, dtype=np.int64)
            if listed.size and not (0 <= listed.min() and listed.max() < n):
                raise ShapeError(
                    f"support {s} has coordinates from {listed.min()} to {listed.max()}, "
                    f"wanted 0 to {n - 1}"
                )
            row = np.zeros((n + 7) // 8, np.uint8)
            np.bitwise_or.at(row, listed >> 3, (1 << (listed & 7)).astype(np.uint8))
            rows.append(row)
        return cls(np.array(rows, np.uint8).reshape(len(rows), (n + 7) // 8), n)

    @classmethod
    def from_masks(cls, masks: Iterable[NDArray[np.bool_]], n: int) -> Supports:
        """Supports given as boolean arrays of n elements each, of any shape.

        Only the bitmaps are kept, so `masks` may be a generator over large gradients.

        Raises:
            ShapeError: a mask has another number of elements.
        """
        rows = []
        for s, mask in enumerate(masks):
            if mask.size != n:
                raise ShapeError(f"mask {s} has {mask.size} elements, wanted {n}")
            rows.append(np.packbits(mask.reshape(-1).astype(bool), bitorder="little"))
        return cls(np.array(rows, np.uint8).reshape(len(rows), (n + 7) // 8), n)

    def __len__(self) -> int:
        """Number of samples S."""
        return len(self.bits)

    def __getitem__(self, samples: slice | NDArray[np.integer]) -> Supports:
        """Return some of the samples."""
        return Supports(self.bits[samples], self.n)

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of coordinates in each support, (S,)."""
        sizes: NDArray[np.int64] = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)
        return sizes

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many samples touch each coordinate, (n,)."""
        counts = np.zeros(self.n, np.int64)
        for row in self.bits:
            counts += np.unpackbits(row, count=self.n, bitorder="little")
        return counts

    def lists(self) -> list[NDArray[np.int64]]:
        """Return the coordinates of each support, ascending."""
        return [
            np.flatnonzero(np.unpackbits(row, count=self.n, bitorder="little")) for row in self.bits
        ]

    def meetings(self, others: Supports) -> NDArray[np.int64]:
        """Return how many of `others` each sample shares a coordinate with, (S,).

        A sample that is also among `others` counts itself there, unless it is empty.

        Raises:
            ShapeError: `others` has other coordinates.
        """
        if others.n != self.n:
            raise ShapeError(f"supports over {self.n} and over {others.n} coordinates do not meet")
        met = np.zeros(len(self), np.int64)
        _native.bitmap_meetings(self.bits, others.bits, met)
        return met
