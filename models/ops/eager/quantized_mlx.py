"""Quantized weights in MLX: groups of a row share a scale and a bias; inference only."""

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx.core import array

GROUP_SIZES = (64, 32)
"""Group sizes, of which the first that divides the row is used; mlx.nn's default first."""

MIN_ROWS = 32
"""Matrices with fewer rows stay float32: packing them saves nothing."""


@dataclass(frozen=True)
class Quantized:
    """A quantized weight (out, in), for `embed` and the operator `linears`."""

    parts: tuple[array, array, array]
    """Packed (out, in * bits / 32) uint32; scales and offsets (out, in / group_size) float32."""
    how: dict[str, Any]  # group_size, and bits, 4 or 8

    @classmethod
    def of(cls, w: array, bits: int) -> "Quantized":
        """Quantize a matrix, which has to be one that `suits`, and evaluate the result."""
        group_size = next(size for size in GROUP_SIZES if w.shape[1] % size == 0)
        how: dict[str, Any] = {"group_size": group_size, "bits": bits}
        packed, scales, offsets = mx.quantize(w, **how)
        mx.eval(packed, scales, offsets)
        return cls((packed, scales, offsets), how)

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of the packed elements, by which it differs from every other parameter."""
        return self.parts[0].dtype

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.parts[0].shape[0]

    def __getitem__(self, rows: array) -> array:
        """Return rows, dequantized; index of any shape, result (*index.shape, in) float32."""
        packed, scales, offsets = self.parts
        return mx.dequantize(packed[rows], scales[rows], offsets[rows], **self.how)

    def halves(self) -> "tuple[Quantized, Quantized]":
        """Return the first and the second half of the rows."""
        packed, scales, offsets = (list(mx.split(part, 2)) for part in self.parts)
        first, second = zip(packed, scales, offsets, strict=True)
        return replace(self, parts=first), replace(self, parts=second)

    def linear(self, x: array) -> array:
        """Return x W^T; x (..., in)."""
        return mx.quantized_matmul(x, *self.parts, transpose=True, **self.how)


def suits(shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape can be quantized: a matrix, not tiny, in whole groups."""
    is_large = len(shape) == 2 and shape[0] >= MIN_ROWS
    return is_large and any(shape[1] % size == 0 for size in GROUP_SIZES)
