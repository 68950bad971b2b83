"""Adds to the flat shared arena, and steps along directions.

Concurrency: no add is lost beside other 32-bit atomic adders of the same GPU; beside CPUs and other
processes, `mlxhog doctor` measures it. No element is torn. A step reads w once, possibly between
two adds of others. Nothing orders the writes of a launch, and no framework knows of writes in
place: an operation that still reads such an array is evaluated before, and none is passed twice.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Launch
from mlxhog.metal.kernels.family import Family, Numbers

HP = 8  # floats
FLAG_FLOATS = 32


def dense_axpy(arena: Any, g: Any, *, scale: Any, offset: int) -> Launch:
    """Launch `arena[offset : offset + n] += scale * g`, for g of n values.

    Raises:
        ShapeError: the range does not lie inside the arena.
    """
    return DENSE_AXPY.launch({"arena": arena, "g": _flat(g)}, scale=scale, offset=offset)


def step(
    x: Mapping[str, Any], *, decays: Any, hp: Any, offset: int, height: int | None = None
) -> Launch:
    """Launch `w -= lr * (scale * g + coupled * w) + decoupled * w` of a run of parameters.

    Args:
        x: `arena` and `g`, the directions; with `rows`, ascending and each once, a step of these
            rows of one parameter; with `last` and `prev` the step of a run is recorded there.
        decays: of the arena, one flag per `FLAG_FLOATS` floats; parameters start on such
            boundaries.
        hp: lr, scale, coupled and decoupled of the parameters whose flag is set, and of the others.
        offset: first float of the run, or of the parameter.
        height: number of rows of the parameter.

    Raises:
        ShapeError: arrays that do not fit each other, or a run outside the arena.
    """
    x = {**x, "decays": decays, "hp": hp}
    if height is not None:
        return STEP_ROWS.launch(x, offset=offset, height=height)
    kernel = STEP_RECORDED if "last" in x else STEP
    return kernel.launch({**x, "g": _flat(x["g"])}, offset=offset)


def _flat(g: Any) -> Any:
    """Return a flat array itself, so that a launch sees when it is passed twice."""
    return g if len(g.shape) == 1 else g.reshape(-1)


def _inside(n: Numbers) -> Numbers:
    """Refuse a run, or a parameter, that does not lie inside the arena."""
    end = n["offset"] + (n["height"] * n["n_columns"] if "height" in n else n["n"])
    if not 0 <= n["offset"] <= end <= n.get("A", end):
        raise ShapeError(
            f"elements {n['offset']} to {end} of the arena, which has {n['A']}; "
            "build the model and the arena from the same config"
        )
    if "F" in n and n["F"] * FLAG_FLOATS < end:
        raise ShapeError(
            f"decays has {n['F']} flags, for {n['F'] * FLAG_FLOATS} floats; the launch ends at "
            f"float {end} of the arena: pass one flag per {FLAG_FLOATS} floats of it"
        )
    return {}


FLAT = Family(
    header="adds.h",
    shapes={
        "arena": "A",  # shared, and written in place, as the next two
        "last": "A",  # a step, and the one before
        "prev": "A",
        "g": "n",
        "decays": "F uint8",
        "hp": "8",
        "done": "1 uint32",
    },
    derived=_inside,
)
ROWS = replace(
    FLAT,
    shapes={
        **FLAT.shapes,
        "rows": "n_rows int32",  # of the parameter; those outside of it are left out
        "g": "n_rows n_columns",
        "done": "n_rows uint32",
    },
)


def _group(n: Numbers) -> tuple[int, int, int]:
    """About 256 threads, along the row first."""
    x = max(1, min(n["n_columns"], 256))
    return x, 256 // x, 1


_FLAT_LAUNCH: dict[str, Any] = {"grid": lambda n: (n["n"], 1, 1), "at": "thread_position_in_grid.x"}
DENSE_AXPY = FLAT.kernel("dense_axpy", "arena! g", "done", "scale:float32 n offset", **_FLAT_LAUNCH)
STEP = FLAT.kernel("step", "arena! g decays hp", "done", "n offset", **_FLAT_LAUNCH)
STEP_RECORDED = FLAT.kernel(
    "step_recorded", "arena! last! prev! g decays hp", "done", "n offset", **_FLAT_LAUNCH
)
STEP_ROWS = ROWS.kernel(
    "step_rows", "arena! rows g decays hp", "done", "n_columns n_rows height offset",
    grid=lambda n: (n["n_columns"], n["n_rows"], 1), threadgroup=_group,
)  # fmt: skip
KERNELS = (DENSE_AXPY, STEP, STEP_RECORDED, STEP_ROWS)
