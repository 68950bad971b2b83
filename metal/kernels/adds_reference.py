"""NumPy references of `adds.h`, for one writer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
UInt32 = NDArray[np.uint32]


def dense_axpy(
    *, arena: Float32, g: Float32, scale: Any, n: int, offset: int, done: UInt32
) -> None:
    """Add `scale * g` to n floats of the arena, the product rounded first."""
    arena[offset : offset + n] += np.float32(scale) * g.reshape(-1)[:n]
    done[:] = 1


def dense_axpy_nz(
    *,
    arena: Float32,
    g: Float32,
    added: UInt32,
    scale: Any,
    n: int,
    offset: int,
    done: UInt32,
) -> None:
    """The same where g is not zero; NaN is not zero."""
    some = np.flatnonzero(g.reshape(-1)[:n])
    arena[offset + some] += np.float32(scale) * g.reshape(-1)[some]
    added[0] += len(some)
    done[:] = 1


def scatter_add_rows(
    *,
    arena: Float32,
    rows: Int32,
    g: Float32,
    scale: Any,
    d: int,
    n_rows: int,
    height: int,
    offset: int,
    done: UInt32,
) -> None:
    """Add `scale * g[k]` to row `rows[k]`, duplicates in ascending k."""
    inside = (rows[:n_rows] >= 0) & (rows[:n_rows] < height)
    parameter = arena[offset : offset + height * d].reshape(height, d)
    values = np.float32(scale) * g.reshape(-1)[: n_rows * d].reshape(n_rows, d)
    np.add.at(parameter, rows[:n_rows][inside], values[inside])
    done[:] = inside
