"""The worker processes of a classic run: their arena, their rounds, and the loop of each of them.

segment         dtype    content
params          float32  the shared parameters, each of kind "rows"
data.<name>     any      training data, written once by the host
classic.order   int32    the examples of the current epoch
classic.words   uint8    stop, turn and progress (`metal/native/classic/board.h`)

An epoch is one round; with cyclades a batch is. For a round the host sends each worker its share
through the worker's pipe, with the time at which all begin. A worker makes one native call and
answers with the times of its begin and end, by a clock that all processes share. A worker that dies
ends the run.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena, ArenaHandle, Layout, plan
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.worker_pool import WorkerPool, WorkerProcess
from mlxhog.arena.workers import State
from mlxhog.base.processes import FAULTS, end_by, in_one_line
from mlxhog.classic.config import RunPlan
from mlxhog.classic.problem import Float32, Kernel, ProblemMemory
from mlxhog.errors import WorkerFailed
from mlxhog.models.spec import ParamSpec

ORDER, WORDS = "classic.order", "classic.words"
_DATA = "data."
BEGIN_NS = 200_000  # from the host's sending until the workers begin
POLL_S = 0.01
STOP_S = 5.0

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


# -- one worker ------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """Seconds of a round, those inside the native loops of all workers, and the examples done.

    A round lasts from the first worker's begin to the last one's end.
    """

    seconds: float
    native_s: float
    examples: int


def main(pipe: Connection, *job: Any) -> None:
    """Entry point of the spawned process; an error that ends it is sent through the pipe."""
    try:
        _work(pipe, *job)
    except FAULTS as fault:
        pipe.send(in_one_line(fault))
        end_by(fault)


def _work(
    pipe: Connection,
    handle: ArenaHandle,
    rank: int,
    core: int | None,
    kernel: Kernel,
    shapes: Shapes,
    run: RunPlan,
) -> None:
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    arena = Arena.from_handle(handle)
    memory, order = problem_memory(arena, shapes), arena.segment(ORDER)
    for view in memory.data.values():
        view.flags.writeable = False
    for array in (*memory.params.values(), *memory.data.values(), order):
        # Read a byte of every page, so that the page faults do not fall into an epoch.
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)
    problem = kernel(memory)
    plain, probing = (
        _native.ClassicScheme(
            run.kind,
            arena.segment(WORDS),
            None if run.kind == "private" else arena.locks(rank + 1),
            0,  # with several parameters, the problem adds the first lock word of each
            rank,
            run.workers,
            hot=min(run.config.hot, sum(values.size for values in memory.params.values())),
            period=run.config.period,
            probe=probe,
            probe_every=run.probe_every or 1,
        )
        for probe in (None, arena.probe[:1])
    )
    arena.workers.entry(rank + 1).state = State.RUNNING
    pipe.send((0, 0))
    while (share := pipe.recv()) is not None:
        (start, count), gamma, probe, at_ns = share
        while (begin_ns := monotonic_ns()) < at_ns:
            pass
        examples = order[start : start + count]
        problem.run(probing if probe else plain, examples, gamma, run.batch)
        pipe.send((begin_ns, monotonic_ns()))
    arena.workers.entry(rank + 1).state = State.FINISHED


# -- all workers -----------------------------------------------------------------------------------


class Workers:
    """The workers of one run, which `start` spawns. Used by one thread.

    Args:
        arena: an arena planned by `plan_layout`, filled.
        kernel: builds the native problem.
        shapes: shapes of the data, by name.
        run: the plan; each worker is pinned to a core of its own if there are enough.
        show: called many times a second with the number of examples done so far.
    """

    def __init__(
        self,
        arena: Arena,
        kernel: Kernel,
        shapes: Shapes,
        run: RunPlan,
        show: Callable[[int], None],
    ) -> None:
        self._arena, self._count, self._show = arena, run.workers, show
        self._job = kernel, shapes, run
        self._board = _native.ClassicBoard(arena.segment(WORDS), run.workers)
        self._pool = WorkerPool()
        self._before = self._done()  # by an earlier run in this arena

    def _done(self) -> int:
        return sum(map(self._board.examples, range(self._count)))

    def start(self) -> float:
        """Start all workers; returns the seconds until all have mapped the arena.

        Raises:
            WorkerFailed: a worker died.
        """
        began_ns = monotonic_ns()
        self._board.reset()
        cores: list[int] = sorted(getattr(os, "sched_getaffinity", lambda _: ())(0))
        for rank in range(self._count):
            core = cores[rank] if len(cores) >= self._count else None
            job, slot = (self._arena.handle(), rank, core, *self._job), rank + 1
            self._pool[slot] = WorkerProcess(
                main, job, name=f"mlxhog-classic-{rank}", threads=1, pipe=True, arena=self._arena,
                slot=slot,
            )  # fmt: skip
        self._answers(range(self._count))
        return (monotonic_ns() - began_ns) / 1e9

    def do(self, parts: Sequence[tuple[int, int]], gamma: float, *, probe: bool = False) -> Totals:
        """Have parts of the order, (start, count) of each rank, done in one round.

        With `probe` workers add to the probe that counts lost updates (`run.py`).

        Raises:
            WorkerFailed: a worker died.
        """
        self._board.reset()
        begin_ns = monotonic_ns() + BEGIN_NS
        busy = [rank for rank, (_, count) in enumerate(parts) if count]
        for rank in busy:
            with contextlib.suppress(OSError):  # it died: `_answers` says how
                self._pool[rank + 1].pipe.send((parts[rank], gamma, probe, begin_ns))
        spans = self._answers(busy)
        seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
        native = sum(end - begin for begin, end in spans)
        return Totals(seconds / 1e9, native / 1e9, sum(count for _, count in parts))

    def stop(self) -> None:
        """End every worker, also in the middle of a share."""
        self._board.stop()
        for process in self._pool.values():
            with contextlib.suppress(OSError):
                process.pipe.send(None)
        for slot in list(self._pool):
            self._pool.reap(slot, STOP_S)

    def _answers(self, ranks: Iterable[int]) -> list[tuple[int, int]]:
        """Wait for an answer of each rank; shows the progress meanwhile."""
        waiting, answers = set(ranks), list[tuple[int, int]]()
        rank_of: dict[Any, int] = {one.pipe: slot - 1 for slot, one in self._pool.items()}
        while waiting:
            for pipe in wait(list(rank_of), POLL_S):  # of all: a worker without a share may die
                answers.append(self._answer(rank_of[pipe]))
                waiting.discard(rank_of[pipe])
            self._show(self._done() - self._before)
        return answers

    def _answer(self, rank: int) -> tuple[int, int]:
        """Receive the answer of a rank; WorkerFailed if it died."""
        answer: tuple[int, int] | str | None = None
        with contextlib.suppress(EOFError, OSError):
            answer = self._pool[rank + 1].pipe.recv()
        if isinstance(answer, tuple):
            return answer
        death = self._pool.reap(rank + 1, STOP_S)
        if answer is not None:
            raise WorkerFailed(
                f"worker {rank + 1} ended with an error of the program: {answer}; see above, and "
                "please report it"
            )
        raise WorkerFailed(
            f"worker {rank + 1} died ({death}), so the run ended; run the command again. Does "
            "something kill processes on this machine, such as a memory limit?"
        )
