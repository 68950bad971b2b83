"""Examples that are a pair of rows and a number, as the native loops read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def packed(first: Int32, second: Int32, values: ArrayLike) -> Int32:
    """(n, 3) int32: both rows, and the bits of the float32 value.

    One example taken at random is one cache miss; three arrays would cost three.
    """
    table = np.empty((len(first), 3), dtype=np.int32)
    table[:, 0] = first
    table[:, 1] = second
    table[:, 2] = np.ascontiguousarray(values, dtype=np.float32).view(np.int32)
    return table


def supports(first: Int32, second: Int32) -> tuple[Int64, Int32]:
    """(indptr, indices) of the hypergraph whose edges are these pairs of rows, lower row first."""
    indptr = np.arange(0, 2 * len(first) + 1, 2, dtype=np.int64)
    return indptr, np.sort(np.stack([first, second], axis=1), axis=1).reshape(-1).astype(np.int32)
