"""Adds to the flat shared arena: dense, dense without zeros, by rows, and the naive one.

Concurrency: every kernel here but `racy_axpy` loses no add, beside any number of other 32-bit
atomic adders of the same GPU. Beside CPUs and other processes that is what `mlxhog doctor`
measures. An element is never torn.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import adds_reference as reference
from mlxhog.metal.kernels.ranges import check_range, check_rows, check_written, row_group, size

_ARENA = Argument(name="arena", writes=True)
_G = Argument(name="g")
_SCALE = Argument(name="scale", scalar=True)
_N = Argument(name="n", dtype="uint32", scalar=True)
_OFFSET = Argument(name="offset", dtype="uint32", scalar=True)
_DONE = Argument(name="done", dtype="uint32")


def dense_axpy(arena: Any, g: Any, *, scale: Any, offset: int) -> Launch:
    """Launch `arena[offset : offset + n] += scale * g`.

    Args:
        arena: (floats,) float32, shared, written in place.
        g: n values, float32, any shape.
        scale: float32.
        offset: first float of the arena.

    Raises:
        ShapeError: the range does not lie inside the arena.
    """
    return _dense(DENSE_AXPY, arena, g, scale, offset)


def dense_axpy_nz(arena: Any, g: Any, added: Any, *, scale: Any, offset: int) -> Launch:
    """Launch `dense_axpy` without the elements where g is 0 or -0.

    Args:
        arena: as for `dense_axpy`, likewise `g`, `scale`, `offset`.
        g: see there.
        added: (8 or more,) uint32; the number of adds is added to its first element.
        scale: see there.
        offset: see there.

    Raises:
        ShapeError: the range does not lie inside the arena, or `added` is too small.
    """
    check_written("added", added)
    return _dense(DENSE_AXPY_NZ, arena, g, scale, offset, added=added)


def racy_axpy(arena: Any, g: Any, *, scale: Any, offset: int) -> Launch:
    """Launch `dense_axpy` as a naive program would write it, to see how many adds that loses.

    Raises:
        ShapeError: the range does not lie inside the arena.

    Concurrency: of simultaneous adds to one element all but one may be lost.
    """
    return _dense(RACY_AXPY, arena, g, scale, offset)


def scatter_add_rows(
    arena: Any, rows: Any, g: Any, *, scale: Any, offset: int, height: int
) -> Launch:
    """Launch `parameter[rows[k]] += scale * g[k]` for every k; equal rows add up.

    The output `done` is 1 for every row that was added and 0 for one outside the parameter, which
    was left out.

    Args:
        arena: (floats,) float32, shared, written in place.
        rows: (r,) int32, in any order, duplicates legal.
        g: (r, d) float32.
        scale: float32.
        offset: first float of the parameter in the arena.
        height: rows of the parameter.

    Raises:
        ShapeError: shapes do not fit, the parameter does not lie inside the arena, or (NumPy only)
            a row does not lie inside the parameter.
    """
    n_rows, d = check_rows(rows, g, height)
    check_range("the arena", arena, offset, height * d)
    return Launch(
        kernel=SCATTER_ADD_ROWS,
        inputs={
            "arena": arena,
            "rows": rows,
            "g": g,
            "scale": scale,
            "d": d,
            "n_rows": n_rows,
            "height": height,
            "offset": offset,
        },
        outputs={"done": (n_rows,)},
        grid=(d, n_rows, 1),
        group=row_group(d),
    )


def _dense(kernel: Kernel, arena: Any, g: Any, scale: Any, offset: int, **more: Any) -> Launch:
    n = size(g)
    check_range("the arena", arena, offset, n)
    scalars = {"scale": scale, "n": n, "offset": offset}
    return Launch(
        kernel=kernel,
        inputs={"arena": arena, "g": g, **more, **scalars},
        outputs={"done": (1,)},
        grid=(n, 1, 1),
    )


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal(shape, dtype=np.float32)


def _sample_dense(rng: np.random.Generator, n: int) -> Launch:
    return dense_axpy(_normal(rng, n + 8), _normal(rng, n), scale=-0.5, offset=3)


def _sample_racy(rng: np.random.Generator, n: int) -> Launch:
    return racy_axpy(_normal(rng, n + 8), _normal(rng, n), scale=-0.5, offset=3)


def _sample_nz(rng: np.random.Generator, n: int) -> Launch:
    g = np.where(rng.random(n) < 0.5, _normal(rng, n), np.float32(0))
    return dense_axpy_nz(_normal(rng, n + 8), g, np.zeros(8, np.uint32), scale=-0.5, offset=3)


def _sample_rows(rng: np.random.Generator, n: int) -> Launch:
    # Small integers, so that the order of duplicate rows does not matter.
    d = 16
    r = max(1, n // d)
    arena = rng.integers(-8, 9, r * d + 8).astype(np.float32)
    g = rng.integers(-8, 9, (r, d)).astype(np.float32)
    rows = rng.integers(0, r, r).astype(np.int32)
    return scatter_add_rows(arena, rows, g, scale=-0.5, offset=5, height=r)


DENSE_AXPY = Kernel(
    name="dense_axpy",
    header="adds.h",
    source="mlxhog::dense_axpy(arena, g, scale, n, offset, done, thread_position_in_grid.x);",
    inputs=(_ARENA, _G, _SCALE, _N, _OFFSET),
    outputs=(_DONE,),
    reference=reference.dense_axpy,
    sample=_sample_dense,
    bytes_per_element=12,  # arena read and written, g read
)
DENSE_AXPY_NZ = Kernel(
    name="dense_axpy_nz",
    header="adds.h",
    source=(
        "mlxhog::dense_axpy_nz(arena, g, added, scale, n, offset, done, "
        "thread_position_in_grid.x, thread_index_in_simdgroup);"
    ),
    inputs=(_ARENA, _G, Argument(name="added", dtype="uint32", writes=True), _SCALE, _N, _OFFSET),
    outputs=(_DONE,),
    reference=reference.dense_axpy_nz,
    sample=_sample_nz,
    lockstep=True,
    bytes_per_element=12,  # where g is not zero; else 4
)
RACY_AXPY = Kernel(
    name="racy_axpy",
    header="adds.h",
    source="mlxhog::racy_axpy(arena, g, scale, n, offset, done, thread_position_in_grid.x);",
    inputs=(_ARENA, _G, _SCALE, _N, _OFFSET),
    outputs=(_DONE,),
    reference=reference.dense_axpy,
    sample=_sample_racy,
    bytes_per_element=12,
)
SCATTER_ADD_ROWS = Kernel(
    name="scatter_add_rows",
    header="adds.h",
    source=(
        "mlxhog::scatter_add_rows(arena, rows, g, scale, d, n_rows, height, offset, done, "
        "thread_position_in_grid);"
    ),
    inputs=(
        _ARENA,
        Argument(name="rows", dtype="int32"),
        _G,
        _SCALE,
        Argument(name="d", dtype="uint32", scalar=True),
        Argument(name="n_rows", dtype="uint32", scalar=True),
        Argument(name="height", dtype="uint32", scalar=True),
        _OFFSET,
    ),
    outputs=(_DONE,),
    reference=reference.scatter_add_rows,
    sample=_sample_rows,
    bytes_per_element=12,  # and 8 per row
)
KERNELS = (DENSE_AXPY, DENSE_AXPY_NZ, RACY_AXPY, SCATTER_ADD_ROWS)
