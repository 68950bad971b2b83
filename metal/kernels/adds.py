"""Adds to the flat shared arena, dense, by rows and the naive one; and steps along directions.

Arguments of the launches here:

    arena   (floats,) float32, shared, written in place
    g       float32: n values of any shape, or (r, d) of rows
    scale   float32, multiplies g first
    offset  first float of the arena, or of the parameter whose rows are added to
    height  rows of that parameter
    rows    (r,) int32, in any order, duplicates legal; of a step ascending, each once
    decays  uint8, one flag per 32 floats of the arena (parameters start on such boundaries)
    hp      (8,) float32: lr, scale, coupled, decoupled of the parameters whose flag is set, then
            those of the others, see `step`
    last, prev  float32, laid out as the arena, written in place: a step, and the one before

Concurrency: every kernel here except `racy_axpy` loses no add, beside any number of other 32-bit
atomic adders of the same GPU. Beside CPUs and other processes, `mlxhog doctor` measures whether
adds are lost. An element is never torn. A step reads w once, possibly between two adds of others.
Nothing orders the writes of a launch, and no framework knows of writes in place: an operation that
still has to read such an array is evaluated before, and no array is passed twice (refused).
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels.arguments import (
    DONE,
    arrays,
    check_range,
    check_rows,
    check_size,
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

HP = 8  # floats
FLAG_FLOATS = 32


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


def step(
    x: Mapping[str, Any], *, decays: Any, hp: Any, offset: int, height: int | None = None
) -> Launch:
    """Launch `w -= lr * (scale * g + coupled * w) + decoupled * w` of a run of parameters.

    Args:
        x: `arena` and `g`, the directions; with `rows` a step of these rows of one parameter; with
            `last` and `prev` the step of a run is recorded there.
        decays: of the arena.
        hp: of the step.
        offset: first float of the run, or of the parameter.
        height: number of rows of the parameter.

    Raises:
        ShapeError: arrays that do not fit each other, a run outside the arena, or (NumPy only) rows
            that do not ascend or lie outside the parameter.
    """
    numbers: dict[str, int]
    if height is None:
        n = size(x["g"])
        kernel, grid, group = (STEP_RECORDED if "last" in x else STEP), (n, 1, 1), (256, 1, 1)
        numbers, shape, floats = {"n": n}, (1,), n
    else:
        n_rows, d = check_rows(x["rows"], x["g"], height, distinct=True)
        kernel, grid, group = STEP_ROWS, (d, n_rows, 1), row_group(d)
        numbers, shape = {"d": d, "n_rows": n_rows, "height": height}, (n_rows,)
        floats = height * d
    check_range("the arena", x["arena"], offset, floats)
    for name in ("last", "prev") if "last" in x else ():
        check_size(f"{name}, which is laid out as the arena,", x[name], size(x["arena"]))
    check_size("hp", hp, HP)
    if (flags := size(decays)) * FLAG_FLOATS < offset + floats:
        raise ShapeError(
            f"decays has {flags} flags, for {flags * FLAG_FLOATS} floats; the launch ends at "
            f"float {offset + floats} of the arena: pass one flag per {FLAG_FLOATS} floats of it"
        )
    inputs = {**x, "decays": decays, "hp": hp, **numbers, "offset": offset}
    return Launch(kernel=kernel, inputs=inputs, outputs={"done": shape}, grid=grid, group=group)


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


def _step_reference(*, offset: int, done: UInt32, n: int = 0, **x: Any) -> None:
    """Step elements along a direction, product by product as the kernel rounds."""
    at, chosen = np.arange(n), np.arange(n)
    done[:] = 1
    if "rows" in x:
        rows, column = x["rows"][: x["n_rows"]].astype(np.int64), np.arange(x["d"])
        done[:] = inside = (rows >= 0) & (rows < x["height"])
        at = (rows[inside, None] * x["d"] + column).reshape(-1)
        chosen = (np.flatnonzero(inside)[:, None] * x["d"] + column).reshape(-1)
    at = offset + at
    rates = x["hp"].reshape(2, 4)[np.where(x["decays"][at // FLAG_FLOATS] != 0, 0, 1)]
    lr, scale, coupled, decoupled = rates.T
    w = x["arena"][at]
    delta = -(lr * (scale * x["g"].reshape(-1)[chosen] + coupled * w) + decoupled * w)
    x["arena"][at] += delta
    if "last" in x:
        x["prev"][at] = x["last"][at]
        x["last"][at] = delta


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


def _sample_step(rng: np.random.Generator, n: int) -> Launch:
    x = {"arena": _normal(rng, n + 8), "g": _normal(rng, n)}
    return step(x, **_sample_rates(rng, n + 8), offset=3)


def _sample_recorded(rng: np.random.Generator, n: int) -> Launch:
    x = {name: _normal(rng, n + 8) for name in ("arena", "last", "prev")} | {"g": _normal(rng, n)}
    return step(x, **_sample_rates(rng, n + 8), offset=3)


def _sample_step_rows(rng: np.random.Generator, n: int) -> Launch:
    """The step of an embedding of which about half of the rows are touched, n elements."""
    d = 16
    r = max(1, n // d)
    x = {
        "arena": _normal(rng, 2 * r * d + 8),
        "rows": np.sort(rng.choice(2 * r, r, replace=False)).astype(np.int32),
        "g": _normal(rng, r, d),
    }
    return step(x, **_sample_rates(rng, 2 * r * d + 8), offset=5, height=2 * r)


def _sample_rates(rng: np.random.Generator, floats: int) -> dict[str, Any]:
    """Rates for a launch over an arena; half of its parameters decay."""
    hp = np.array([0.1, 0.75, 0.2, 0.01, 0.1, 0.75, 0.0, 0.0], np.float32)
    return {"decays": rng.integers(0, 2, -(-floats // FLAG_FLOATS), dtype=np.uint8), "hp": hp}


def _step_kernel(
    name: str,
    sample: Callable[[np.random.Generator, int], Launch],
    *,
    before: Sequence[Argument] = (),
    numbers: str = "n offset",
    at: str = "thread_position_in_grid.x",
) -> Kernel:
    return declare(
        name,
        "adds.h",
        (written("arena"), *before, *arrays("g"), *arrays("decays", "uint8"), *arrays("hp")),
        (DONE,),
        sizes(numbers),
        at=at,
        reference=_step_reference,
        sample=sample,
    )


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
STEP = _step_kernel("step", _sample_step)
STEP_RECORDED = _step_kernel(
    "step_recorded", _sample_recorded, before=(written("last"), written("prev"))
)
STEP_ROWS = _step_kernel(
    "step_rows",
    _sample_step_rows,
    before=arrays("rows", "int32"),
    numbers="d n_rows height offset",
    at="thread_position_in_grid",
)
KERNELS = (DENSE_AXPY, RACY_AXPY, SCATTER_ADD_ROWS, STEP, STEP_RECORDED, STEP_ROWS)
