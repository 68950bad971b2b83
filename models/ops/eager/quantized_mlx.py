"""Matrices of few bits in MLX: groups of a row share a scale and an offset.

Only reading is supported, for generation. MLX multiplies by such a matrix without expanding it.
"""

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx.core import array

GROUP_SIZES = (64, 32)
"""Elements of a row that share a scale, the first that divides the row; mlx.nn's default first."""

MIN_ROWS = 32
"""Smaller matrices stay float32: packing them saves nothing."""


@dataclass(frozen=True)
class Quantized:
    """A matrix (out, in), each element one of 2^bits steps between its group's bounds.

    It stands for a parameter in `embed` and in the op `linears`.
    """

    parts: tuple[array, array, array]
    """Packed (out, in * bits / 32) uint32; scales and offsets (out, in / group_size) float32."""
    how: dict[str, Any]  # elements per scale, and 4 or 8 bits

    @classmethod
    def of(cls, w: array, bits: int) -> "Quantized":
        """Quantise a matrix, which has to be one that `suits`; the result is computed here."""
        group_size = next(size for size in GROUP_SIZES if w.shape[1] % size == 0)
        how: dict[str, Any] = {"group_size": group_size, "bits": bits}
        packed, scales, offsets = mx.quantize(w, **how)
        mx.eval(packed, scales, offsets)
        return cls((packed, scales, offsets), how)

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the packed elements, by which it differs from every plain parameter."""
        return self.parts[0].dtype

    def __getitem__(self, rows: array) -> array:
        """Return rows of the matrix; index of any shape, result (*index.shape, in) float32."""
        packed, scales, offsets = self.parts
        return mx.dequantize(packed[rows], scales[rows], offsets[rows], **self.how)

    def halves(self) -> "tuple[Quantized, Quantized]":
        """Return the matrices of the first and of the second half of the rows."""
        packed, scales, offsets = (list(mx.split(part, 2)) for part in self.parts)
        first, second = zip(packed, scales, offsets, strict=True)
        return replace(self, parts=first), replace(self, parts=second)

    def product(self, x: array) -> array:
        """Return x W^T; x (..., in)."""
        return mx.quantized_matmul(x, *self.parts, transpose=True, **self.how)


def suits(shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape is quantized: a matrix, not tiny, in whole groups."""
    is_large = len(shape) == 2 and shape[0] >= MIN_ROWS
    return is_large and any(shape[1] % size == 0 for size in GROUP_SIZES)
