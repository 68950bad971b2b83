"""Checks that a launch stays inside its arrays; a GPU writes wherever it is told to.

Arrays may be NumPy's, MLX's or torch's, so only `shape` is used; dtype, layout and device are for
the engine to check.
"""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import numpy as np

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Size

LEAST = 8  # elements: MLX would hand a smaller array over in memory that cannot be written
MOST = 2**31 - 1  # elements: MLX counts them in int32, and kernels in uint


class Array(Protocol):
    """What an array of any framework has."""

    @property
    def shape(self) -> Any:
        """Sizes."""


def size(array: Array) -> int:
    """Number of elements.

    Raises:
        ShapeError: more than a kernel can count.
    """
    n = prod(int(length) for length in array.shape)
    if n > MOST:
        raise ShapeError(
            f"an array of shape {tuple(array.shape)} has {n} elements; "
            f"a kernel counts up to {MOST}: launch it in parts"
        )
    return n


def check_written(name: str, array: Array) -> None:
    """Refuse an array that a kernel cannot write in place.

    Raises:
        ShapeError: not flat, or too small.
    """
    if len(array.shape) != 1 or size(array) < LEAST:
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}; a kernel writes flat arrays of {LEAST} or "
            "more elements in place: pass the whole segment and an offset"
        )


def check_range(name: str, array: Array, offset: int, n: int) -> None:
    """Refuse a range that does not lie inside an array that is written in place.

    Raises:
        ShapeError: naming the range and the array.
    """
    check_written(name, array)
    if offset < 0 or n < 0 or offset + n > size(array):
        raise ShapeError(
            f"elements {offset} to {offset + n} of {name}, which has {size(array)}; "
            "build the model and the arena from the same config"
        )


def check_size(name: str, array: Array, wanted: int) -> None:
    """Refuse an array with another number of elements.

    Raises:
        ShapeError: naming both numbers.
    """
    if size(array) != wanted:
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}, {size(array)} elements; this launch wants "
            f"{wanted}, as many as its other arrays"
        )


def check_rows(rows: Array, g: Array, height: int, *, distinct: bool = False) -> tuple[int, int]:
    """Refuse row numbers that do not fit the gradient or the parameter; returns (rows, width).

    Values are checked where they are at hand, in NumPy; kernels leave out rows outside 0 to
    height - 1 in any case.

    Raises:
        ShapeError: shapes, sizes, numbers outside the parameter, or (distinct) numbers that do not
            ascend.
    """
    if len(rows.shape) != 1 or len(g.shape) != 2 or rows.shape[0] != g.shape[0]:
        raise ShapeError(
            f"rows have shape {tuple(rows.shape)}, their values {tuple(g.shape)}; "
            "wanted (r,) and (r, d)"
        )
    size(g)  # refuses too many
    if isinstance(rows, np.ndarray) and rows.size:
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= height:
            raise ShapeError(
                f"rows run from {low} to {high}; the parameter has rows 0 to {height - 1}"
            )
        if distinct and not bool(np.all(rows[1:] > rows[:-1])):
            raise ShapeError(
                "rows repeat or do not ascend; a step updates the state of a row once: "
                "use Rows.coalesced() first"
            )
    return int(g.shape[0]), int(g.shape[1])


def row_group(d: int) -> Size:
    """Threads of one group over a grid (d, rows, 1): about 256, along the row first."""
    x = max(1, min(d, 256))
    return x, 256 // x, 1
