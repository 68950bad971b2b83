"""Frozen weights: matrices of linear layers without a gradient, in float32, 16 bits, or quantized.

Quantized as MLX does: each group of a row has a scale and an offset, w = scale * q + offset, with q
of 4 or 8 bits, packed into words of 32, the first in the lowest bits. A file has them as NAME,
NAME with "weight" replaced by "scales", and by "biases".

Operators multiply in the dtype of x, so by the same numbers as the dequantized weight. They convert
a weight piece by piece, for each product, and again in the backward pass, so that a whole matrix of
float32 never exists. They save nothing: the gradient of x does not depend on x.

Source: MLX's documentation, `mlx.core.quantize`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import mapped

GROUP_SIZES = (64, 32)
"""Group sizes, of which the first that divides the row is used; MLX's default first."""

MIN_ROWS = 32
"""Matrices with fewer rows stay float32: packing them saves nothing."""

PIECE = 1 << 24  # elements that an eager operator converts at a time


@dataclass(frozen=True)
class FrozenWeight:
    """A matrix (out, in), of floats or quantized, in arrays of a framework or of NumPy.

    NumPy's are for native operators, which read them where they lie, such as in a mapped file.
    """

    parts: tuple[Any, ...]
    """(w,); or packed (out, in * bits / 32), 32-bit integers, scales and offsets (out, groups)."""
    bits: int = 0  # of the elements of a quantized one

    @property
    def dtype(self) -> Any:
        """Dtype of the stored elements, which may be packed."""
        return self.parts[0].dtype

    @property
    def on_host(self) -> bool:
        """Whether its arrays are NumPy's."""
        return isinstance(self.parts[0], np.ndarray)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows, width = self.parts[0].shape
        return rows, width * 32 // self.bits if self.bits else width

    @property
    def how(self) -> dict[str, Any]:
        """Group size and bits of a quantized one, as arguments of MLX's functions."""
        packed, scales, _ = self.parts
        width = packed.shape[-1] * 32 // self.bits
        return {"group_size": width // scales.shape[-1], "bits": self.bits}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.parts[0].shape[0])

    def __getitem__(self, rows: Any) -> "FrozenWeight":
        """Return some rows: views of a slice, copies of an index, which may have several axes."""
        if self.on_host and not isinstance(rows, slice):
            rows = np.asarray(rows)
        return self.on(lambda part: part[rows])

    def on(self, change: Callable[[Any], Any]) -> "FrozenWeight":
        """Return the weight with changed arrays."""
        return replace(self, parts=tuple(map(change, self.parts)))

    def halves(self) -> "tuple[FrozenWeight, FrozenWeight]":
        """Return the first and the second half of the rows."""
        half = len(self) // 2
        return self[:half], self[half:]

    def pieces(self) -> Iterator[tuple[slice, "FrozenWeight"]]:
        """Yield ranges of rows of at most `PIECE` elements, and these rows."""
        n = max(1, PIECE // self.shape[1])
        for first in range(0, len(self), n):
            rows = slice(first, min(first + n, len(self)))
            yield rows, self[rows]


def suits(shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape can be quantized: a matrix, not tiny, in whole groups."""
    is_large = len(shape) == 2 and shape[0] >= MIN_ROWS
    return is_large and any(shape[1] % size == 0 for size in GROUP_SIZES)


def names_of(name: str) -> tuple[str, str, str]:
    """Return the names of a quantized weight's arrays in a file."""
    stem = name.removesuffix("weight")
    return name, f"{stem}scales", f"{stem}biases"


def quantize(
    w: NDArray[Any], bits: int, threads: int = 1
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Quantize a matrix (out, in) of floats, which `suits`; it may view a mapped file.

    Returns:
        Packed words (out, in * bits / 32) uint32, scales and offsets (out, groups) float32.
    """
    from mlxhog._native import ops  # only processes that compute load it

    out, width = w.shape
    size = next(size for size in GROUP_SIZES if width % size == 0)
    packed = np.empty((out, width * bits // 32), np.uint32)
    scales, offsets = (np.empty((out, width // size), np.float32) for _ in range(2))
    n = max(1, mapped.CHUNK_BYTES // (4 * width))
    for first in range(0, out, n):
        rows = slice(first, first + n)
        part = np.ascontiguousarray(mapped.in_memory(w[rows]), np.float32)
        ops.quantize(part, packed[rows], scales[rows], offsets[rows], threads=threads)
    return packed, scales, offsets
