"""The arena of classic runs, and the functions that their workers call.

segment         dtype    content
params          float32  the shared parameters, each of kind "rows"
data.<name>     any      training data, written once by the host
classic.order   int32    the examples of the current epoch
classic.words   uint8    stop, turn and progress (`metal/native/classic/board.h`)
"""

import mmap
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena, Layout, plan
from mlxhog.arena.child import Lane
from mlxhog.arena.process import monotonic_ns
from mlxhog.models.spec import ParamSpec
from mlxhog.research.classic.config import ClassicPlan
from mlxhog.research.classic.problem import Float32, Kernel, ProblemMemory

ORDER, WORDS = "classic.order", "classic.words"
_DATA = "data."

Shapes = Mapping[str, tuple[int, ...]]

# -- the arena -------------------------------------------------------------------------------------


def plan_layout(
    initial: Mapping[str, Float32], data: Mapping[str, NDArray[Any]], n_examples: int, workers: int
) -> Layout:
    """Plan the arena of runs of a problem with its initial parameters, each (rows, width)."""
    rows = {name: ParamSpec(name, one.shape, "zeros", kind="rows") for name, one in initial.items()}
    return plan(
        rows,
        max_workers=workers,
        n_tickets=1,
        extra={
            **{_DATA + name: (array.dtype.str, array.size) for name, array in data.items()},
            ORDER: ("int32", n_examples),
            WORDS: ("uint8", _native.ClassicBoard.bytes(workers)),
        },
    )


def problem_memory(arena: Arena, shapes: Shapes) -> ProblemMemory:
    """The parameters of an arena, and its training data as arrays of these shapes, by name."""
    slots = arena.layout.slots.items()
    return ProblemMemory(
        {n: arena.params[at.offset : at.offset + at.size].reshape(at.shape) for n, at in slots},
        {n: arena.segment(_DATA + n).reshape(shape) for n, shape in shapes.items()},
        {n: at.row_word0 for n, at in slots if at.row_word0 is not None},
    )


# -- in a worker -----------------------------------------------------------------------------------


def prepare(
    lane: Lane, rank: int, core: int | None, kernel: Kernel, shapes: Shapes, run: ClassicPlan
) -> None:
    """Map the arena, and build the native problem and both loops, without and with the probe."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    arena = lane.arena
    memory, order = problem_memory(arena, shapes), arena.segment(ORDER)
    for view in memory.data.values():
        view.flags.writeable = False
    for array in (*memory.params.values(), *memory.data.values(), order):
        # Read a byte of every page, so that the page faults do not fall into an epoch.
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)
    strategies = [
        _native.ClassicScheme(
            run.kind,
            arena.segment(WORDS),
            None if run.kind == "private" else arena.locks(lane.slot),
            0,  # with several parameters, the problem adds the first lock word of each
            rank,
            run.workers,
            hot=min(run.config.hot, sum(values.size for values in memory.params.values())),
            period=run.config.period,
            probe=probe,
            probe_every=run.probe_every or 1,
        )
        for probe in (None, arena.probe[:1])
    ]
    lane.store["run"] = kernel(memory).run, strategies, order, run.batch


def do_share(
    lane: Lane, start: int, count: int, gamma: float, probe: bool, at_ns: int
) -> tuple[int, int]:
    """Take the steps of a part of the order from a time on; returns when they began and ended."""
    run, strategies, order, batch = lane.store["run"]
    while (begin_ns := monotonic_ns()) < at_ns:
        pass
    run(strategies[probe], order[start : start + count], gamma, batch)
    return begin_ns, monotonic_ns()
