"""The order of accesses to shared memory in a recorded run, and the last step of a dead worker.

    segment        dtype   meaning
    turns.next     uint8   u32 per lock word: accesses so far
    turns.<slot>   uint8   book of that worker's current step, see `Book`

Accesses under a lock word are numbered from 0; `metal/native/updates/turns.h` calls their numbers
turns, as do the names of the segments. `recorded.py` has the workers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena, Layout, event_log
from mlxhog.arena.event_log import NUMBERS_BYTES, Died, Numbers, Torn, UInt32
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.words import Table
from mlxhog.backends.backend import Float32
from mlxhog.base.durable import disk_errors
from mlxhog.optim import updates
from mlxhog.strategies import look_ahead

NEXT = "turns.next"
SHARED = ("params", "m", "v", *look_ahead.SEGMENTS)
"""Segments of the parameters' layout that all workers write, where a run has them."""
IDLE, READING, WRITING = 0, 1, 2
_NUMBERS_AT, _WORDS_AT = 64, 128
_TABLE = Table(step=(1, "phase begun_at"))
Region = tuple[int, int, int, int | None]
"""First float, floats, floats of a row, lock word of row 0 (None: by stripes)."""


def segments(slots: int) -> dict[str, tuple[str, int]]:
    """Arena segments of the table above; a quarter of the parameters' bytes is room for a step."""
    books = {f"turns.{slot}": ("uint8", PARAMETER_COPY) for slot in range(1, slots + 1)}
    return {NEXT: ("uint8", PARAMETER_COPY), **books}


def access_counts(arena: Arena) -> UInt32:
    """Number of accesses so far under each lock word, (lock words,) uint32, shared."""
    return arena.segment(NEXT).view(np.uint32)[: arena.layout.n_lock_words]


class Book:
    """Progress of a worker's current step, in shared memory, which outlives the worker.

    bytes 0 .. 15 and from 512 on are those of turns.h; 64 its `Numbers`; 128 its words.

    Attributes:
        content: the whole book.
        words: `phase`, one of IDLE, READING, WRITING; `begun_at`, where the record of this step
            begins in the log.
    """

    def __init__(self, arena: Arena, slot: int) -> None:
        self.content: NDArray[np.uint8] = arena.segment(f"turns.{slot}")
        self.words = _TABLE.open(self.content[_WORDS_AT : _native.TURNS_HEAD])

    @property
    def numbers(self) -> Numbers:
        """Numbers of this step."""
        return Numbers.unpack(self.content[_NUMBERS_AT : _NUMBERS_AT + NUMBERS_BYTES].tobytes())

    @numbers.setter
    def numbers(self, value: Numbers) -> None:
        packed = np.frombuffer(value.pack(), np.uint8)
        self.content[_NUMBERS_AT : _NUMBERS_AT + NUMBERS_BYTES] = packed

    @property
    def last(self) -> tuple[int, int]:
        """Lock word of the last access of this step, and the number of accesses."""
        word, count = divmod(_native.load_u64(self.content, 0), 1 << 32)
        return word, count

    def accesses(self) -> UInt32:
        """The numbers of this step's accesses, (n,) uint32."""
        return self.content[_native.TURNS_HEAD :].view(np.uint32)[: self.last[1]].copy()


def stripe_sums(arena: Arena) -> UInt32:
    """Checksum of every stripe of the current weights, (stripes,) uint32."""
    return _native.stripe_sums(arena.params[: arena.layout.probe.offset])


def regions(layout: Layout) -> list[Region]:
    """The parameters as runs with one kind of lock."""
    runs: list[Region] = []
    for slot in sorted(layout.slots.values(), key=lambda one: one.offset):
        if slot.kind == "rows":
            runs.append((slot.offset, slot.size, updates.row_width(slot), slot.row_word0))
        elif runs and runs[-1][3] is None:
            begin = runs[-1][0]
            runs[-1] = (begin, slot.offset + slot.size - begin, 0, None)
        else:
            runs.append((slot.offset, slot.size, 0, None))
    return runs


def guarded(layout: Layout, word: int) -> list[tuple[int, int]]:
    """Runs of the parameter segment that a lock word guards, as (first float, end)."""
    runs = []
    for first, floats, width, row_word0 in regions(layout):
        if row_word0 is None:
            begin, end = word * updates.STRIPE, (word + 1) * updates.STRIPE
        else:
            begin = first + (word - row_word0) * width
            end = begin + width
        begin, end = max(begin, first), min(end, first + floats)
        if begin < end:
            runs.append((begin, end))
    return runs


def stripe_name(layout: Layout, stripe: int) -> str:
    """A stripe in words, with the parameters that lie in it: `stripe 2 (dense, few)`."""
    begin, end = stripe * updates.STRIPE, (stripe + 1) * updates.STRIPE
    slots = sorted(layout.slots.values(), key=lambda one: one.offset)
    names = [s.name for s in slots if s.offset < end and begin < s.offset + s.size]
    return f"stripe {stripe} ({', '.join(names)})"


def shared_floats(arena: Arena, word: int) -> list[Float32]:
    """Parts of every shared array of the parameters' layout that a lock word guards."""
    runs = guarded(arena.layout, word)
    shared = [arena.segment(name) for name in SHARED if name in arena.layout.segments]
    return [array[begin:end] for array in shared for begin, end in runs]


def private_floats(arena: Arena, slot: int) -> list[Float32]:
    """A worker's private optimizer state, segment by segment."""
    return [arena.segment(name) for name in private_names(arena.layout, slot)]


def private_names(layout: Layout, slot: int) -> list[str]:
    """Segments of one worker's private optimizer state: floats with the slot in their name."""
    return [
        name
        for name, segment in layout.segments.items()
        if name.endswith(f".{slot}") and segment.dtype == "float32" and not name.startswith("live.")
    ]


def put(arrays: list[Float32], content: bytes) -> None:
    """Set arrays to their joined bytes."""
    floats, at = np.frombuffer(content, np.float32), 0
    for array in arrays:
        array[...] = floats[at : at + len(array)]
        at += len(array)


def settle(arena: Arena, run_dir: Path, slot: int, *, died: bool) -> None:
    """Log the unfinished step of a worker that has ended, and free its locks.

    Its process is gone, and is not declared dead yet: until then no worker takes over its locks.

    Args:
        arena: of the run.
        run_dir: of the run.
        slot: of the worker.
        died: whether it ended without being asked to.
    """
    book, path = Book(arena, slot), event_log.worker_path(run_dir, slot)
    phase = book.words["phase"]
    if phase == IDLE:
        if died:
            event_log.append(path, Died())
        return
    with disk_errors(f"writing {path}"):
        os.truncate(path, book.words["begun_at"])  # it may have written a part of its record
    word, count = book.last
    accesses, shared = book.accesses(), access_counts(arena)
    writing = phase == WRITING
    unfinished = count > 0 and int(shared[word]) == int(accesses[-1])
    floats = shared_floats(arena, word) if writing and unfinished else []
    private = private_floats(arena, slot) if writing else []
    joined = (b"".join(array.tobytes() for array in arrays) for arrays in (floats, private))
    event_log.append(path, Torn(book.numbers, writing, unfinished, accesses, *joined))
    if unfinished:
        shared[word] += 1
    book.words["phase"] = IDLE
    _native.sweep_locks(arena.segment("locks"), slot)
