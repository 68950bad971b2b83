"""Adds to the flat shared arena, dense, by rows and the naive one.

Arguments of the adds here:

    arena   (floats,) float32, shared, written in place
    g       float32: n values of any shape, or (r, d) of rows
    scale   float32, multiplies g first
    offset  first float of the arena, or of the parameter whose rows are added to
    height  rows of that parameter
    rows    (r,) int32, in any order, duplicates legal

Concurrency: every kernel here except `racy_axpy` loses no add, beside any number of other 32-bit
atomic adders of the same GPU. Beside CPUs and other processes, `mlxhog doctor` measures whether
adds are lost. An element is never torn.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels.arguments import (
    DONE,
    arrays,
    check_range,
    check_rows,
    declare,
    floats,
    row_group,
    size,
    sizes,
    written,
)

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
UInt32 = NDArray[np.uint32]


def dense_axpy(arena: Any, g: Any, *, scale: Any, offset: int) -> Launch:
    """Launch `arena[offset : offset + n] += scale * g`.

    Raises:
        ShapeError: the range does not lie inside the arena.
    """
    return _dense(DENSE_AXPY, arena, g, scale, offset)


def racy_axpy(arena: Any, g: Any, *, scale: Any, offset: int) -> Launch:
    """Launch `dense_axpy` as a naive program would write it, to see how many adds that loses.

    Raises:
        ShapeError: the range does not lie inside the arena.

    Concurrency: of simultaneous adds to one element all but one may be lost.
    """
    return _dense(RACY_AXPY, arena, g, scale, offset)


def _dense(kernel: Kernel, arena: Any, g: Any, scale: Any, offset: int) -> Launch:
    n = size(g)
    check_range("the arena", arena, offset, n)
    return Launch(
        kernel=kernel,
        inputs={"arena": arena, "g": g, "scale": scale, "n": n, "offset": offset},
        outputs={"done": (1,)},
        grid=(n, 1, 1),
    )


def scatter_add_rows(
    arena: Any, rows: Any, g: Any, *, scale: Any, offset: int, height: int
) -> Launch:
    """Launch `parameter[rows[k]] += scale * g[k]` for every k; equal rows add up.

    The output `done` is 1 for every row that was added, and 0 for a row outside the parameter,
    which is skipped.

    Raises:
        ShapeError: shapes do not fit, the parameter does not lie inside the arena, or (NumPy only)
            a row does not lie inside the parameter.
    """
    n_rows, d = check_rows(rows, g, height)
    check_range("the arena", arena, offset, height * d)
    numbers = {"scale": scale, "d": d, "n_rows": n_rows, "height": height, "offset": offset}
    return Launch(
        kernel=SCATTER_ADD_ROWS,
        inputs={"arena": arena, "rows": rows, "g": g, **numbers},
        outputs={"done": (n_rows,)},
        grid=(d, n_rows, 1),
        group=row_group(d),
    )


# -- in NumPy, for one writer ----------------------------------------------------------------------


def _dense_reference(
    *, arena: Float32, g: Float32, scale: Any, n: int, offset: int, done: UInt32
) -> None:
    """Add `scale * g` to n floats of the arena, the product rounded first."""
    arena[offset : offset + n] += np.float32(scale) * g.reshape(-1)[:n]
    done[:] = 1


def _rows_reference(
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


# -- declarations ----------------------------------------------------------------------------------


def _normal(rng: np.random.Generator, *shape: int) -> Float32:
    return rng.standard_normal(shape, dtype=np.float32)


def _sample_dense(rng: np.random.Generator, n: int) -> Launch:
    return dense_axpy(_normal(rng, n + 8), _normal(rng, n), scale=-0.5, offset=3)


def _sample_racy(rng: np.random.Generator, n: int) -> Launch:
    return racy_axpy(_normal(rng, n + 8), _normal(rng, n), scale=-0.5, offset=3)


def _sample_rows(rng: np.random.Generator, n: int) -> Launch:
    # Small integers, so that the order of duplicate rows does not matter.
    d = 16
    r = max(1, n // d)
    arena = rng.integers(-8, 9, r * d + 8).astype(np.float32)
    g = rng.integers(-8, 9, (r, d)).astype(np.float32)
    rows = rng.integers(0, r, r).astype(np.int32)
    return scatter_add_rows(arena, rows, g, scale=-0.5, offset=5, height=r)


def _dense_kernel(name: str, sample: Callable[[np.random.Generator, int], Launch]) -> Kernel:
    return declare(
        name,
        "adds.h",
        (written("arena"), *arrays("g")),
        (DONE,),
        (*floats("scale"), *sizes("n offset")),
        at="thread_position_in_grid.x",
        reference=_dense_reference,
        sample=sample,
    )


DENSE_AXPY = _dense_kernel("dense_axpy", _sample_dense)
RACY_AXPY = _dense_kernel("racy_axpy", _sample_racy)
SCATTER_ADD_ROWS = declare(
    "scatter_add_rows",
    "adds.h",
    (written("arena"), *arrays("rows", "int32"), *arrays("g")),
    (DONE,),
    (*floats("scale"), *sizes("d n_rows height offset")),
    reference=_rows_reference,
    sample=_sample_rows,
)
KERNELS = (DENSE_AXPY, RACY_AXPY, SCATTER_ADD_ROWS)
