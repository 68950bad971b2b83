"""One worker of a classic run: it does the shares that it is dealt, each by one native call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.workers import State
from mlxhog.classic.layout import (
    COPY,
    ORDER,
    ROUNDS,
    WORDS,
    Rounds,
    Share,
    problem_memory,
    touch_pages,
)
from mlxhog.classic.problem import Float32, Kernel
from mlxhog.classic.schemes import Scheme
from mlxhog.machine.processes import FAULTS, end_by, follow_parent, in_one_line


@dataclass(frozen=True)
class WorkerArgs:
    """What a worker is spawned with; picklable, and small however large the data are.

    Attributes:
        handle: the arena.
        rank: 0 .. workers - 1; its slot in the worker table is rank + 1.
        workers: number of workers in the run.
        scheme: how it writes.
        kernel: builds the native problem.
        shapes: of the data, by name.
        batch: examples in a step.
        queue: examples it claims at a time from the queue; 0 where it is dealt shares.
        hot: as in `ClassicConfig`.
        period: as in `ClassicConfig`.
        probe_every: examples between two additions to the probe, at least 1.
        core: the core it stays on; None is wherever the system puts it.
    """

    handle: ArenaHandle
    rank: int
    workers: int
    scheme: Scheme
    kernel: Kernel
    shapes: Mapping[str, tuple[int, ...]]
    batch: int
    queue: int
    hot: int
    period: int
    probe_every: int
    core: int | None


def main(pipe: Connection, args: WorkerArgs) -> None:
    """Entry point of the spawned process; the pipe takes the error that ended it."""
    follow_parent()
    try:
        _run(args)
    except FAULTS as fault:
        pipe.send(in_one_line(fault))
        end_by(fault)


def _run(args: WorkerArgs) -> None:
    if args.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {args.core})
    arena = Arena.from_handle(args.handle)
    steps = _Steps(args, arena)
    rounds, rank = Rounds(arena.segment(ROUNDS)), args.rank
    arena.workers.entry(rank + 1).state = State.RUNNING
    number = 0
    while (dealt := rounds.next_share(rank, number)) is not None:
        number, share = dealt
        if not rounds.begin(rank, number):
            break
        rounds.end(rank, number, steps.do(share))
    arena.workers.entry(rank + 1).state = State.FINISHED


class _Steps:
    """The native problem and scheme over this worker's views."""

    def __init__(self, args: WorkerArgs, arena: Arena) -> None:
        slot = args.rank + 1
        self.args, self.arena = args, arena
        self.copy = arena.segment(f"{COPY}.{slot}") if args.scheme.copies else None
        self.order = arena.segment(ORDER)
        memory = problem_memory(arena, args.shapes, slot if args.scheme.copies else None)
        touch_pages([*memory.params.values(), *memory.data.values(), arena.params, self.order])
        self.problem = args.kernel(memory)
        self.board = _native.ClassicBoard(arena.segment(WORDS), args.workers)
        self.scheme = self._scheme(None)
        self.probing = self._scheme(arena.probe[:1])

    def _scheme(self, probe: Float32 | None) -> _native.ClassicScheme:
        args = self.args
        return _native.ClassicScheme(
            args.scheme.kind,
            self.arena.segment(WORDS),
            None if args.scheme.kind == "private" else self.arena.locks(args.rank + 1),
            0,  # where several parameters have locks, the problem adds their first words
            args.rank,
            args.workers,
            hot=args.hot,
            period=args.period,
            probe=probe,
            probe_every=args.probe_every,
        )

    def do(self, share: Share) -> int:
        """Do a share; returns the examples done."""
        if share.load and self.copy is not None:
            np.copyto(self.copy, self.arena.params)
        queue = self.args.queue
        if not queue:
            return self._run(share, share.start, share.count)
        done = 0
        while (at := self.board.take(queue)) < share.count:
            count = min(queue, share.count - at)
            ran = self._run(share, share.start + at, count)
            done += ran
            if ran < count:
                break
        return done

    def _run(self, share: Share, start: int, count: int) -> int:
        order = self.order[start : start + count]
        scheme = self.probing if share.probe else self.scheme
        return self.problem.run(scheme, order, share.gamma, self.args.batch)
