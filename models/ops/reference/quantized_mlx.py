"""Matrices of few bits in MLX: groups of a row share a scale and an offset.

Only reading is supported, for generation. MLX multiplies by such a matrix without expanding it.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
from mlx.core import array

GROUP_SIZES = (64, 32)
"""Elements of a row that share a scale, the first that divides the row; mlx.nn's default first."""

FEWEST_ROWS = 32
"""Smaller matrices stay float32: packing them saves nothing."""


@dataclass(frozen=True)
class Quantized:
    """A matrix (out, in), each element one of 2^bits steps between its group's bounds.

    It stands for a parameter in `embed` and in the op `linears`.
    """

    packed: array  # (out, in * bits / 32) uint32
    scales: array  # (out, in / group_size) float32
    offsets: array  # as scales
    group_size: int  # elements per scale
    bits: int  # 4 or 8

    @classmethod
    def of(cls, w: array, bits: int) -> Quantized:
        """Quantise a matrix, which has to be one that `suits`; the result is computed here."""
        group_size = next(size for size in GROUP_SIZES if w.shape[1] % size == 0)
        packed, scales, offsets = mx.quantize(w, group_size=group_size, bits=bits)
        mx.eval(packed, scales, offsets)
        return cls(packed, scales, offsets, group_size, bits)

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the packed elements, by which it differs from every plain parameter."""
        return self.packed.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return self.packed.nbytes + self.scales.nbytes + self.offsets.nbytes

    def __getitem__(self, rows: array) -> array:
        """Return rows of the matrix; index of any shape, result (*index.shape, in) float32."""
        return mx.dequantize(
            self.packed[rows],
            self.scales[rows],
            self.offsets[rows],
            group_size=self.group_size,
            bits=self.bits,
        )

    def halves(self) -> tuple[Quantized, Quantized]:
        """Return the matrices of the first and of the second half of the rows."""
        packed, scales, offsets = (
            list(mx.split(part, 2)) for part in (self.packed, self.scales, self.offsets)
        )
        first, second = (
            Quantized(packed[half], scales[half], offsets[half], self.group_size, self.bits)
            for half in (0, 1)
        )
        return first, second

    def product(self, x: array) -> array:
        """Return x W^T; x (..., in)."""
        return mx.quantized_matmul(
            x,
            self.packed,
            self.scales,
            self.offsets,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
        )


def suits(shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape is quantised: a matrix, not tiny, in whole groups."""
    return (
        len(shape) == 2
        and shape[0] >= FEWEST_ROWS
        and any(shape[1] % size == 0 for size in GROUP_SIZES)
    )
