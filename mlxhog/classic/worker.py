"""One worker of a classic run: do the shares it is dealt, each by one call into native code."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.workers import State
from mlxhog.classic import places
from mlxhog.classic.job import Job
from mlxhog.classic.problem import Float32
from mlxhog.classic.rounds import SEGMENT, Rounds, Share
from mlxhog.machine.processes import FAULTS, end_by, follow_parent, in_one_line


def main(job: Job, last_words: Connection) -> None:
    """Entry point of the spawned process; `last_words` takes the error that ended it."""
    follow_parent()
    try:
        _run(job)
    except FAULTS as fault:
        last_words.send(in_one_line(fault))
        end_by(fault)


def _run(job: Job) -> None:
    if job.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job.core})
    arena = Arena.from_handle(job.handle)
    work = _Work(job, arena)
    rounds, rank = Rounds(arena.segment(SEGMENT)), job.rank
    arena.workers.entry(rank + 1).state = State.RUNNING
    last = 0
    while (dealt := rounds.next_share(rank, last)) is not None:
        last, share = dealt
        if not rounds.begin(rank, last):
            break
        rounds.end(rank, last, work.do(share))
    arena.workers.entry(rank + 1).state = State.FINISHED


class _Work:
    """The native problem and scheme over this worker's views."""

    def __init__(self, job: Job, arena: Arena) -> None:
        slot = job.rank + 1
        self.job, self.arena = job, arena
        self.own = arena.segment(f"{places.COPY}.{slot}") if job.scheme.copies else None
        self.order = arena.segment(places.ORDER)
        memory = places.memory(arena, job.shapes, slot if job.scheme.copies else None)
        places.touch([*memory.params.values(), *memory.data.values(), arena.params, self.order])
        self.problem = job.kernel(memory)
        self.board = _native.ClassicBoard(arena.segment(places.WORDS), job.workers)
        self.scheme = self._scheme(None)
        self.probing = self._scheme(arena.probe[:1])

    def _scheme(self, probe: Float32 | None) -> _native.ClassicScheme:
        job = self.job
        return _native.ClassicScheme(
            job.scheme.kind,
            self.arena.segment(places.WORDS),
            None if job.scheme.kind == "private" else self.arena.locks(job.rank + 1),
            0,  # where several parameters have locks, the problem adds their first words
            job.rank,
            job.workers,
            hot=job.hot,
            period=job.period,
            probe=probe,
            probe_every=job.probe_every,
        )

    def do(self, share: Share) -> int:
        """Return the examples done."""
        if share.load and self.own is not None:
            np.copyto(self.own, self.arena.params)
        if not self.job.queue:
            return self._run(share, share.start, share.count)
        done = 0
        while (at := self.board.take(self.job.queue)) < share.count:
            count = min(self.job.queue, share.count - at)
            ran = self._run(share, share.start + at, count)
            done += ran
            if ran < count:
                break
        return done

    def _run(self, share: Share, start: int, count: int) -> int:
        order = self.order[start : start + count]
        scheme = self.probing if share.probe else self.scheme
        return self.problem.run(scheme, order, share.gamma, self.job.batch)
