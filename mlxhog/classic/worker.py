"""One worker of a classic run, its arena, and the control words that the host and it exchange.

segment            dtype    content
params             float32  the shared parameters, each of kind "rows"
copy.<slot>        float32  a worker's own parameters, if the scheme has copies
data.<name>        any      training data, written once by the host
classic.order      int32    the examples of the current epoch
classic.words      uint8    stop, turn, queue and progress (`metal/native/classic/board.h`)
classic.rounds     uint8    the words of `RoundWords`, below

Work comes in rounds: an epoch is one round, and the rest of a dead worker's share is one more. Each
worker with a share of the round arrives; when all have arrived, the host lets them go, so they
begin together. Each records when it began and ended, by a clock that all processes share.

Segment `classic.rounds` has one line of 128 bytes for the host and one for each worker; all words
are 64 bits wide.

    line  byte  type  field      written by  meaning
    0        0  u64   go         host        newest round that may begin
    0        8  u64   leave      host        1: workers exit
    1 + k    0  u64   dealt      host        round that worker k has a share of; written last
    1 + k    8  u64   start      host        its share is order[start : start + count]
    1 + k   16  u64   count      host
    1 + k   24  f64   gamma      host        step size
    1 + k   32  u64   load       host        1: copy the parameters first (schemes with copies)
    1 + k   40  u64   probe      host        1: add to the probe with every n-th example
    1 + k   64  u64   arrived    worker      round for which it has arrived
    1 + k   72  u64   finished   worker      round that it has finished; written last
    1 + k   80  u64   begin_ns   worker      `monotonic_ns()`
    1 + k   88  u64   end_ns     worker

`go`, `leave`, `dealt`, `arrived` and `finished` are stored with release and loaded with acquire
order; the other words are read only after one of these loads.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena, ArenaHandle, Layout, plan
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import State
from mlxhog.classic.config import RunSettings
from mlxhog.classic.problem import Float32, Kernel, ProblemMemory, RowParam
from mlxhog.machine.processes import FAULTS, end_by, in_one_line

# -- the arena -------------------------------------------------------------------------------------

ORDER, WORDS, ROUNDS = "classic.order", "classic.words", "classic.rounds"
COPY = "copy"
_DATA = "data."

_LINE = 128
_GO, _LEAVE = 0, 8
_DEALT, _ARRIVED, _FINISHED = 0, 64, 72
_LINE_DTYPE = np.dtype(
    {
        "names": ["start", "count", "gamma", "load", "probe", "begin_ns", "end_ns"],
        "formats": ["<u8", "<u8", "<f8", "<u8", "<u8", "<u8", "<u8"],
        "offsets": [8, 16, 24, 32, 40, 80, 88],
        "itemsize": _LINE,
    }
)
_POLL_S = 0.0002
_SPINS = 2000  # a worker that has arrived yields for about a millisecond before it sleeps


def plan_layout(
    params: Mapping[str, RowParam],
    data: Mapping[str, NDArray[Any]],
    n_examples: int,
    workers: int,
    *,
    copies: bool,
) -> Layout:
    """Plan the arena of a run.

    Args:
        params: parameters of the problem.
        data: data of the problem.
        n_examples: number of its examples.
        workers: largest number of workers of any run in this arena.
        copies: whether each worker has its own copy of the parameters.
    """
    return plan(
        params,
        max_workers=workers,
        private=(COPY,) if copies else (),
        n_tickets=1,
        extra={
            **{_DATA + name: (array.dtype.str, array.size) for name, array in data.items()},
            ORDER: ("int32", n_examples),
            WORDS: ("uint8", _native.ClassicBoard.bytes(workers)),
            ROUNDS: ("uint8", _LINE * (1 + workers)),
        },
    )


def param_views(arena: Arena, slot: int | None = None) -> dict[str, Float32]:
    """The shared parameters by name, or the copy of a worker slot."""
    flat = arena.params if slot is None else arena.segment(f"{COPY}.{slot}")
    return {
        name: flat[at.offset : at.offset + at.size].reshape(at.shape)
        for name, at in arena.layout.slots.items()
    }


def data_views(arena: Arena, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The training data by name, as arrays of these shapes."""
    return {name: arena.segment(_DATA + name).reshape(shape) for name, shape in shapes.items()}


def problem_memory(
    arena: Arena, shapes: Mapping[str, tuple[int, ...]], slot: int | None = None
) -> ProblemMemory:
    """A native problem's views of the arena; the data are read-only.

    Args:
        arena: arena of this run.
        shapes: shapes of the data, by name.
        slot: slot whose copy of the parameters is used; None is the shared parameters.
    """
    data = data_views(arena, shapes)
    for view in data.values():
        view.flags.writeable = False
    words = {name: at.row_word0 for name, at in arena.layout.slots.items()}
    return ProblemMemory(
        param_views(arena, slot),
        data,
        {name: word for name, word in words.items() if word is not None},
    )


def touch_pages(arrays: Iterable[NDArray[Any]]) -> None:
    """Read a byte of every page, so that the page faults do not fall into an epoch."""
    for array in arrays:
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)


# -- rounds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """The part of a round that one worker does.

    Attributes:
        gamma: step size.
        load: whether to copy the shared parameters to the worker's copy first.
        probe: whether to add to the probe that counts lost updates (`session.py`).
        start: the share is `order[start : start + count]`; with a queue, the examples that the
            worker claims in this range.
        count: number of examples.
    """

    gamma: float
    load: bool = False
    probe: bool = False
    start: int = 0
    count: int = 0


class RoundWords:
    """The segment `classic.rounds`: methods for the host only, and methods for workers only."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap the segment."""
        self._data = data
        self._lines: NDArray[Any] = data[_LINE:].view(_LINE_DTYPE)
        self.number = _native.load_u64(data, _GO)  # the last round of an earlier run in this arena

    def _at(self, worker: int, word: int) -> int:
        return _LINE * (1 + worker) + word

    # -- for the host ----------------------------------------------------------------------------

    def deal(self, shares: Mapping[int, Share]) -> int:
        """Begin a new round with these shares, by worker; returns its number."""
        self.number += 1
        for worker, share in shares.items():
            line = self._lines[worker]
            line["start"], line["count"] = share.start, share.count
            line["gamma"], line["load"], line["probe"] = share.gamma, share.load, share.probe
            _native.store_u64(self._data, self._at(worker, _DEALT), self.number)
        return self.number

    def arrived(self, worker: int) -> bool:
        """Whether a worker has arrived for the newest round."""
        return _native.load_u64(self._data, self._at(worker, _ARRIVED)) == self.number

    def finished(self, worker: int) -> bool:
        """Whether a worker has finished the newest round."""
        return _native.load_u64(self._data, self._at(worker, _FINISHED)) == self.number

    def go(self) -> None:
        """Let the workers that have arrived begin."""
        _native.store_u64(self._data, _GO, self.number)

    def request_exit(self) -> None:
        """Ask every worker to exit."""
        _native.store_u64(self._data, _LEAVE, 1)

    def cancel_exit(self) -> None:
        """Cancel `request_exit`, before workers are spawned."""
        _native.store_u64(self._data, _LEAVE, 0)

    def reset(self, worker: int) -> None:
        """Clear the line of a worker before it is spawned; it has no share of the current round."""
        for word in (_DEALT, _ARRIVED, _FINISHED):
            _native.store_u64(self._data, self._at(worker, word), 0)

    def span_ns(self, worker: int) -> tuple[int, int]:
        """Begin and end of the round in a worker that has finished it, in ns."""
        line = self._lines[worker]
        return int(line["begin_ns"]), int(line["end_ns"])

    # -- for workers -----------------------------------------------------------------------------

    def next_share(self, worker: int, last: int) -> tuple[int, Share] | None:
        """Wait for a round after `last`; returns its number and share, or None to exit."""
        while True:
            if _native.load_u64(self._data, _LEAVE):
                return None
            number = _native.load_u64(self._data, self._at(worker, _DEALT))
            if number > last:
                line = self._lines[worker]
                return number, Share(
                    gamma=float(line["gamma"]),
                    load=bool(line["load"]),
                    probe=bool(line["probe"]),
                    start=int(line["start"]),
                    count=int(line["count"]),
                )
            time.sleep(_POLL_S)

    def begin(self, worker: int, number: int) -> bool:
        """Arrive, wait for the other workers, and record the time; False to exit."""
        _native.store_u64(self._data, self._at(worker, _ARRIVED), number)
        spins = 0
        while _native.load_u64(self._data, _GO) < number:
            if _native.load_u64(self._data, _LEAVE):
                return False
            spins += 1
            if spins > _SPINS:
                time.sleep(_POLL_S)
            elif hasattr(os, "sched_yield"):
                os.sched_yield()
        self._lines[worker]["begin_ns"] = monotonic_ns()
        return True

    def end(self, worker: int, number: int) -> None:
        """Record the time and report the round as finished."""
        self._lines[worker]["end_ns"] = monotonic_ns()
        _native.store_u64(self._data, self._at(worker, _FINISHED), number)


# -- the worker ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerArgs:
    """The arguments of a spawned worker; picklable, and small even if the data are large.

    Attributes:
        handle: handle of the arena.
        rank: 0 .. workers - 1; its slot in the worker table is rank + 1.
        settings: settings of the run.
        kernel: builds the native problem.
        shapes: shapes of the data, by name.
        core: the core that it is pinned to; None lets the system choose.
    """

    handle: ArenaHandle
    rank: int
    settings: RunSettings
    kernel: Kernel
    shapes: Mapping[str, tuple[int, ...]]
    core: int | None


def main(pipe: Connection, args: WorkerArgs) -> None:
    """Entry point of the spawned process; an error that ends it is sent through the pipe."""
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
    rounds, rank = RoundWords(arena.segment(ROUNDS)), args.rank
    arena.workers.entry(rank + 1).state = State.RUNNING
    number = 0
    while (dealt := rounds.next_share(rank, number)) is not None:
        number, share = dealt
        if not rounds.begin(rank, number):
            break
        steps.do(share)
        rounds.end(rank, number)
    arena.workers.entry(rank + 1).state = State.FINISHED


class _Steps:
    """The native problem and scheme over this worker's views."""

    def __init__(self, args: WorkerArgs, arena: Arena) -> None:
        slot, settings = args.rank + 1, args.settings
        copies = settings.scheme.copies
        self.rank, self.settings, self.arena = args.rank, settings, arena
        self.copy = arena.segment(f"{COPY}.{slot}") if copies else None
        self.order = arena.segment(ORDER)
        memory = problem_memory(arena, args.shapes, slot if copies else None)
        touch_pages([*memory.params.values(), *memory.data.values(), arena.params, self.order])
        self.problem = args.kernel(memory)
        self.board = _native.ClassicBoard(arena.segment(WORDS), settings.workers)
        self.scheme = self._scheme(None)
        self.probing = self._scheme(arena.probe[:1])

    def _scheme(self, probe: Float32 | None) -> _native.ClassicScheme:
        settings, kind = self.settings, self.settings.scheme.kind
        return _native.ClassicScheme(
            kind,
            self.arena.segment(WORDS),
            None if kind == "private" else self.arena.locks(self.rank + 1),
            0,  # with several parameters, the problem adds the first lock word of each
            self.rank,
            settings.workers,
            hot=settings.hot,
            period=settings.period,
            probe=probe,
            probe_every=settings.probe_every or 1,
        )

    def do(self, share: Share) -> None:
        """Do a share; the board counts the examples done."""
        if share.load and self.copy is not None:
            np.copyto(self.copy, self.arena.params)
        claim = self.settings.claim
        if not claim:
            self._run(share, share.start, share.count)
            return
        while (at := self.board.take(claim)) < share.count:
            count = min(claim, share.count - at)
            if self._run(share, share.start + at, count) < count:
                break

    def _run(self, share: Share, start: int, count: int) -> int:
        order = self.order[start : start + count]
        scheme = self.probing if share.probe else self.scheme
        return self.problem.run(scheme, order, share.gamma, self.settings.batch)
