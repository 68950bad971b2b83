"""Lock-free training whose order of accesses is recorded, so that it repeats bit for bit.

Unlike those of `hogwild.py`, workers read each stripe (or row) under its lock, and record the
sequence number of each access under that lock (a turn in `metal/native/updates/turns.h`). Batch,
learning rate and extrapolation are recorded as well, so timing decides nothing else. Rows of tables
are read amid the gradient, which looks them up.

    segment        dtype   meaning
    turns.next     uint32  per lock word: accesses so far, so the number of the next one
    turns.<slot>   uint8   journal of that worker's current step, see `StepJournal`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena, Layout, event_log
from mlxhog.arena.event_log import (
    CHECK_EVERY,
    METADATA_BYTES,
    Accesses,
    RecordedStep,
    StepMetadata,
    Torn,
)
from mlxhog.arena.layout import LOCK_WORDS, PARAMETER_COPY, Parameter, Slot
from mlxhog.arena.words import Table
from mlxhog.base.durable import disk_errors
from mlxhog.base.inside import OpenFolder, inside
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Grads
from mlxhog.optim.rule import parameter
from mlxhog.strategies import prediction
from mlxhog.strategies.context import Context
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from mlxhog.strategies.prediction import PredictingReader
from mlxhog.strategies.strategy import Segments
from mlxhog.strategies.worker import BatchSize, Idle, Lease, WriteResult

NEXT = "turns.next"
SHARED = ("params", "m", "v", *prediction.SEGMENTS)
"""Segments of the parameters' layout that all workers write, where a run has them."""
IDLE, READING, WRITING = 0, 1, 2
_NUMBERS_AT, _WORDS_AT = 64, 128
_TABLE = Table(step=(1, "phase begun_at"))
Region = tuple[int, int, int, int | None]
"""First float, floats, floats of a row, lock word of row 0 (None: by stripes)."""


@dataclass(frozen=True, kw_only=True)
class Recorded(Hogwild):
    """Lock-free workers whose accesses are recorded, or repeated as recorded."""

    probes: ClassVar[bool] = False  # no update is lost under locks

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        # A quarter of the parameters' bytes is room for a step.
        journals = [f"turns.{slot}" for slot in range(1, self.slots + 1)]
        own = dict.fromkeys(journals, ("uint8", PARAMETER_COPY))
        return {**super().segments(spec), **own, NEXT: ("uint32", LOCK_WORDS)}

    def worker_class(self) -> type[OrderedWorker]:
        return ReplayedWorker if self.run.determinism == "replay" else RecordedWorker


# -- the order -------------------------------------------------------------------------------------


class StepJournal:
    """Progress of a worker's current step, in shared memory that outlives the worker.

    Bytes 0 .. 15 and from 512 on are those of turns.h; 64 its `Numbers`; 128 its words: `phase` is
    one of IDLE, READING, WRITING, and the record of this step begins at `begun_at` of the log.
    """

    def __init__(self, arena: Arena, slot: int) -> None:
        self.content: NDArray[np.uint8] = arena.segment(f"turns.{slot}")
        self.words = _TABLE.open(self.content[_WORDS_AT : _native.TURNS_HEAD])
        self._numbers = self.content[_NUMBERS_AT : _NUMBERS_AT + METADATA_BYTES]

    @property
    def numbers(self) -> StepMetadata:
        return StepMetadata.unpack(self._numbers.tobytes())

    def enter(self, phase: int, numbers: StepMetadata) -> None:
        """Store the values of this step that are known in a phase."""
        self._numbers[...] = np.frombuffer(numbers.pack(), np.uint8)
        self.words["phase"] = phase

    @property
    def last(self) -> tuple[int, int]:
        """Lock word of this step's last access, and the number of accesses."""
        word, count = divmod(_native.load_u64(self.content, 0), 1 << 32)
        return word, count

    def accesses(self) -> Accesses:
        """Return the sequence numbers of this step's accesses, (n,) uint32."""
        return self.content[_native.TURNS_HEAD :].view(np.uint32)[: self.last[1]].copy()


def regions(slots: Mapping[str, Slot]) -> list[Region]:
    """Return the parameters as runs with one kind of lock."""
    runs: list[Region] = []
    for slot in sorted(slots.values(), key=lambda one: one.offset):
        if slot.kind != "dense":
            runs.append((slot.offset, slot.size, updates.row_width(slot), slot.row_word0))
        else:  # one run with a dense parameter before it
            begin = runs.pop()[0] if runs and runs[-1][3] is None else slot.offset
            runs.append((begin, slot.offset + slot.size - begin, 0, None))
    return runs


def guarded(layout: Layout, word: int) -> list[tuple[int, int]]:
    """Return the runs of the parameter segment that a lock word guards, as (first float, end)."""
    runs = []
    for first, floats, width, row_word0 in regions(layout.slots):
        begin, size = word * updates.STRIPE, updates.STRIPE
        if row_word0 is not None:
            begin, size = first + (word - row_word0) * width, width
        begin, end = max(begin, first), min(begin + size, first + floats)
        if begin < end:
            runs.append((begin, end))
    return runs


def private_names(layout: Layout, slot: int) -> list[str]:
    """Return the segments of one worker's private optimizer state."""
    return [
        name
        for name, segment in layout.segments.items()
        if name.endswith(f".{slot}") and segment.dtype == "float32" and not name.startswith("live.")
    ]


def at_risk(arena: Arena, slot: int, *, unfinished: bool) -> tuple[list[Float32], list[Float32]]:
    """Return what a death may leave partially written: parts of shared arrays, and private ones.

    An `unfinished` last access is of every array that its lock word guards.
    """
    runs = guarded(arena.layout, StepJournal(arena, slot).last[0]) if unfinished else []
    shared = [arena.segment(name) for name in SHARED if name in arena.layout.segments]
    private = [arena.segment(name) for name in private_names(arena.layout, slot)]
    return [array[begin:end] for array in shared for begin, end in runs], private


# -- workers ---------------------------------------------------------------------------------------


class OrderedTable(NamedTuple):
    """A table whose rows are read under their locks, each access numbered."""

    locks: _native.Locks
    params: Float32
    own: Float32  # takes what is read, and is laid out the same
    slot: Slot

    def __getitem__(self, index: Any) -> Any:
        """Read rows, each once, in the order of their numbers."""
        slot, width = self.slot, updates.row_width(self.slot)
        assert slot.row_word0 is not None
        rows = np.unique(index).tolist()
        places = [(slot.offset + k * width, width, width, slot.row_word0 + k) for k in rows]
        _native.read(self.own, self.params, locks=self.locks, regions=places)
        return parameter(self.own, slot)[index]


class OrderedWorker(HogwildWorker):
    """A worker whose accesses to shared parameters are numbered."""

    def __init__(self, context: Context) -> None:
        arena = context.arena
        self.journal = StepJournal(arena, context.slot)
        self._order = _native.Turns(arena.segment(NEXT), self.journal.content)
        self._locks = arena.locks(context.slot)
        _native.attach_turns(self._locks, self._order)
        self._regions = regions(arena.layout.dense)
        own = np.zeros(arena.params.size, np.float32)  # takes memory only for rows that are read
        self._tables = {
            name: OrderedTable(self._locks, arena.params, own, slot)
            for name, slot in arena.layout.tables.items()
        }
        super().__init__(context)

    def _prepare_for(self, workers: int) -> None:
        """Leave it to the first step, since it reads."""
        self._workers = 0

    def _seed(self, numbers: StepMetadata) -> int:
        return numbers.version_read * 65_537 + self.context.slot

    def _read_in_order(self, numbers: StepMetadata) -> None:
        context, arena, run = self.context, self.context.arena, self.context.run
        params, workers, seed = arena.dense, numbers.workers, self._seed(numbers)
        turns: dict[str, Any] = {"locks": self._locks, "regions": self._regions, "seed": seed}
        if workers != self._workers:
            self._workers, self._reader = workers, PredictingReader(arena, run, workers)
            self._target = replace(
                context.target(context.slot),
                locks=self._locks,
                mode=updates.IN_TURN,
                record=prediction.record(arena, run, workers),
            )
            if workers == 1:
                names = [n for n in prediction.SEGMENTS if n in arena.layout.segments]
                last = [arena.segment(name) for name in names]
                _native.zero_in_turn(self._locks, self._regions, last, seed)
            if self._reader.previous is not None:  # each stripe of it is read in order
                _native.read(self._reader.previous, params, **turns)
        how = self._reader.extrapolation(numbers.horizon)
        _native.read(context.backend.param_buffer, params, **turns, **how)
        context.backend.tables = self._tables

    def _write_in_order(self, grads: Grads, numbers: StepMetadata) -> None:
        self.context.optimizer.step(
            self._target,
            grads,
            lr=numbers.lr,
            step=numbers.opt_step,
            seed=self._seed(numbers),
            grad_scale=self.context.grad_scale(numbers.norm),
            shared_step=numbers.shared_step,
        )

    def _digest(self) -> bytes:
        """Return the SHA-256 of the weights that the backend has."""
        weights = self.context.backend.param_buffer[: self.context.arena.layout.dense_end]
        return hashlib.sha256(weights.data).digest()


class RecordedWorker(OrderedWorker):
    """A worker that records its steps, in its journal first and then in its log."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        assert context.run_dir is not None
        self._folder = OpenFolder(context.run_dir)
        self._number = 0
        self._lease: Lease | Idle = Idle.WAIT
        self._sha256 = b""

    @property
    def _log(self) -> Path:
        return event_log.worker_path(self._folder.path, self.context.slot)

    def claim(self) -> Lease | Idle:
        self._lease = super().claim()
        return self._lease

    def read(self) -> None:
        """Copy the parameters, perhaps extrapolated; each stripe is of one moment."""
        context, lease, words = self.context, self._lease, self.journal.words
        assert isinstance(lease, Lease)
        self._order.record()
        context.entry.version_read = version = context.arena.counters.load("version")
        self._reads.append(version)
        workers = context.live_workers
        horizon = self._reader.horizon(version) if workers == self._workers else workers - 1.0
        numbers = StepMetadata(lease.epoch, lease.ticket, version, workers, horizon)
        words["begun_at"] = self._log.stat().st_size
        self.journal.enter(READING, numbers)
        self._read_in_order(numbers)
        self._sha256 = b"" if self._number % CHECK_EVERY else self._digest()
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        outcome = super().write(grads, lease, size)
        self._number += 1
        numbers, accesses = self.journal.numbers, self.journal.accesses()
        event_log.append(self._log, RecordedStep(numbers, outcome.applied, accesses, self._sha256))
        self.journal.words["phase"] = IDLE
        return outcome

    def _add(self, grads: Grads, norm: float, staleness: int, step: int) -> None:
        context = self.context
        lr, shared_step = self._delays.rate(context.lr(), staleness), context.shared_step()
        numbers = self.journal.numbers._replace(
            opt_step=step, shared_step=shared_step, lr=lr, norm=norm
        )
        self.journal.enter(WRITING, numbers)
        self._write_in_order(grads, numbers)


class Mismatch(Exception):
    """The first thing in which a replay differs from its record."""


@contextmanager
def _as_mismatch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Mismatch(str(error)) from error


class ReplayedWorker(OrderedWorker):
    """A worker that repeats the recorded accesses of a log, or raises `Mismatch`."""

    def repeat_read(self, record: RecordedStep | Torn) -> bool:
        """Repeat the read of a recorded step; returns whether its gradient was begun."""
        torn = isinstance(record, Torn) and record.writing and record.unfinished
        self._order.repeat(record.accesses.tolist(), torn=torn)
        with _as_mismatch():
            self._read_in_order(record.numbers)
        if isinstance(record, RecordedStep) and record.sha256 and record.sha256 != self._digest():
            raise Mismatch("the weights that it reads have another SHA-256")
        self.context.backend.refresh()
        return (
            isinstance(record, RecordedStep)
            or record.writing
            or self._order.done < len(record.accesses)
        )

    def repeat_write(self, record: RecordedStep | Torn, grads: Grads) -> None:
        """Repeat the write of a step as far as it was written, and check it against the record."""
        norm, numbers = self.context.norm(grads), record.numbers
        # Not where it was too stale, or its worker died amid it.
        if record.writing if isinstance(record, Torn) else record.applied:
            if norm != numbers.norm:
                raise Mismatch(f"its gradient has norm {norm!r}, recorded was {numbers.norm!r}")
            with _as_mismatch():
                self._write_in_order(grads, numbers)
        if self._order.done != len(record.accesses):
            raise Mismatch(
                f"it has {self._order.done} accesses to shared parameters, recorded were "
                f"{len(record.accesses)}"
            )
        if isinstance(record, Torn) and record.writing:  # leave memory as its worker left it
            context, unfinished = self.context, record.unfinished
            both = at_risk(context.arena, context.slot, unfinished=unfinished)
            for arrays, content in zip(both, (record.floats, record.private), strict=True):
                floats, at = np.frombuffer(content, np.float32), 0
                for array in arrays:
                    array[...] = floats[at : at + len(array)]
                    at += len(array)
            if unfinished:
                self._order.settle()


# -- deaths ----------------------------------------------------------------------------------------


def settle(arena: Arena, run_dir: Path, slot: int) -> None:
    """Log the unfinished step of a worker whose process is gone, and free its locks.

    It is not declared dead yet: until then no worker takes over its locks.
    """
    journal, path = StepJournal(arena, slot), event_log.worker_path(run_dir, slot)
    phase = journal.words["phase"]
    if phase == IDLE:
        return
    with disk_errors(f"writing {path}"), open(path, "r+b", opener=inside(run_dir)) as file:
        file.truncate(journal.words["begun_at"])  # it may have written a part of its record
    word, count = journal.last
    accesses, shared = journal.accesses(), arena.segment(NEXT)
    writing = phase == WRITING
    unfinished = count > 0 and int(shared[word]) == int(accesses[-1])
    both = at_risk(arena, slot, unfinished=unfinished) if writing else ([], [])
    joined = (b"".join(array.tobytes() for array in arrays) for arrays in both)
    event_log.append(path, Torn(journal.numbers, writing, unfinished, accesses, *joined))
    if unfinished:
        shared[word] += 1
    journal.words["phase"] = IDLE
    _native.sweep_locks(arena.segment("locks"), slot)
