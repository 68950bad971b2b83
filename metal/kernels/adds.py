"""Adds to the flat shared arena, and steps along directions.

Arguments of the launches here:

    arena   (floats,) float32, shared, written in place
    g       float32: n values of any shape, or (r, d) of rows
    scale   float32, multiplies g first
    offset  first float of the arena, or of the parameter whose rows are stepped
    height  rows of that parameter
    rows    (r,) int32, ascending, each once
    decays  uint8, one flag per 32 floats of the arena (parameters start on such boundaries)
    hp      (8,) float32: lr, scale, coupled, decoupled of the parameters whose flag is set, then
            those of the others, see `step`
    last, prev  float32, laid out as the arena, written in place: a step, and the one before

Concurrency: no kernel here loses an add, beside any number of other 32-bit
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

HP = 8  # floats
FLAG_FLOATS = 32


def dense_axpy(arena: Any, g: Any, *, scale: Any, offset: int) -> Launch:
    """Launch `arena[offset : offset + n] += scale * g`.

    Raises:
        ShapeError: the range does not lie inside the arena.
    """
    n = size(g)
    check_range("the arena", arena, offset, n)
    return Launch(
        kernel=DENSE_AXPY,
        inputs={"arena": arena, "g": g, "scale": scale, "n": n, "offset": offset},
        outputs={"done": (1,)},
        grid=(n, 1, 1),
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
        n_rows, d = check_rows(x["rows"], x["g"], height)
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


# -- declarations ----------------------------------------------------------------------------------


def _normal(rng: np.random.Generator, *shape: int) -> Float32:
    return rng.standard_normal(shape, dtype=np.float32)


def _sample_dense(rng: np.random.Generator, n: int) -> Launch:
    return dense_axpy(_normal(rng, n + 8), _normal(rng, n), scale=-0.5, offset=3)


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
        sample=sample,
    )


DENSE_AXPY = declare(
    "dense_axpy",
    "adds.h",
    (written("arena"), *arrays("g")),
    (DONE,),
    (*floats("scale"), *sizes("n offset")),
    at="thread_position_in_grid.x",
    sample=_sample_dense,
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
KERNELS = (DENSE_AXPY, STEP, STEP_RECORDED, STEP_ROWS)
