"""What readers without locks rely on: seqlock counters, and the snapshots that a run publishes.

Seqlock counters: a word per worker slot, and one more for the creator, each odd while this worker
applies an update. A snapshot of the parameters is the model between two updates if no counter was
odd before the copy, and none has changed after it. Else the copy is repeated a few times; workers
do not notice it and never wait. Only an arena whose run publishes snapshots has counters; in others
counting does nothing. The memory order stands in `metal/native/arena/control.h`.

Copies: two segments laid out like `params` alternate: while one is written, the other can be read.
One process publishes. Any number of readers map the arena read-only, and take no lock: a reader
reads again if the copy that it was reading was written meanwhile (a sequence lock), which needs a
reader slower than the time between two copies. A thread of the supervisor's process publishes every
`--live-every` while readers are connected (`requests.py`). No worker waits for it: it takes no
lock, and starts again if an update came in between.

    live.marks      uint8    the marks, each on a cache line of its own
    live.1, live.2  float32  the copies; number k lies in `live.1` if k is odd
    live.words      uint8    of the run: number of the newest copy, 0 none; 1 after the last one.
                             Of each copy: its mark; its oldest and newest update; its time,
                             monotonic ns
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.words import LINE, Table

if TYPE_CHECKING:  # workers do not load them
    from mlxhog.arena.requests import RunServer
    from mlxhog.base.quantities import Interval

Float32 = NDArray[np.float32]
Updates = tuple[int, int]
"""The updates in a copy: those that are completely in it, and those of which a part may be."""
MARKS, WORDS = "live.marks", "live.words"
TRIES = 4
WAIT_S = 0.02  # longest wait for a moment in which no worker applies an update
_MAX_NAP_S = 1e-3
POLL_S = 0.05  # between two looks of the publisher for readers
TRIES_S = 0.02  # its time to try for a copy without an update in between
COPYING_PART = 0.1  # largest part of its time for copying
_TABLE = Table(run=(1, "number closed"), copy=(2, "mark oldest version time_ns"))


def segments(max_workers: int) -> dict[str, tuple[str, int]]:
    """The extra segments of an arena whose run publishes copies, as `arena.plan` takes them."""
    return {
        "live.1": ("float32", PARAMETER_COPY),
        "live.2": ("float32", PARAMETER_COPY),
        WORDS: ("uint8", _TABLE.n_bytes),
        MARKS: ("uint8", LINE * (max_workers + 1)),
    }


def copy_racily(out: Float32, shared: Float32) -> None:
    """Copy (n,) float32 while others write them: floats are whole, but of different versions."""
    _native.read(out, shared)


# -- marks -----------------------------------------------------------------------------------------


class SeqlockCounters:
    """One writer's word."""

    def __init__(self, arena: Arena, slot: int) -> None:
        self._words = arena.segment(MARKS) if MARKS in arena.layout.segments else None
        self._at = LINE * (slot - 1)

    def begin_update(self) -> None:
        """Mark an update, before its first write; a second call before `end_update` does nothing.

        After an error within an update the mark stays: the error ends the worker, and its
        supervisor then ends the mark, or its successor does with the update.
        """
        if self._words is not None:
            _native.begin_writing(self._words, self._at)

    def end_update(self) -> None:
        """End the mark, after the version counter was increased; also that of a dead writer."""
        if self._words is not None:
            _native.end_writing(self._words, self._at)


class SeqlockReader:
    """The words of all writers, for readers that copy parameters; the memory may be read-only."""

    def __init__(self, arena: Arena) -> None:
        self._words, self._n = arena.segment(MARKS), arena.layout.max_workers + 1

    def quiet(self) -> int | None:
        """The sum of the marks; None while a worker applies an update."""
        return _native.nobody_writes(self._words, 0, LINE, self._n)

    def writers(self) -> int:
        """Number of workers that are applying an update now."""
        return sum(_native.load_u64(self._words, LINE * k) & 1 for k in range(self._n))

    def copy(self, version: Callable[[], int], copy: Callable[[], None], limit_s: float) -> Updates:
        """Copy the model as it was between two updates, if a few tries until `limit_s` suffice.

        `version` counts updates so far.
        """
        began = time.monotonic()
        for tries in range(1, TRIES + 1):
            until, nap_s = time.monotonic() + WAIT_S, 0.0
            while (before := self.quiet()) is None and time.monotonic() < until:
                time.sleep(nap_s)
                nap_s = min(_MAX_NAP_S, nap_s + 2e-5)
            oldest = version()
            copy()
            if before is not None and self.quiet() == before:
                return oldest, oldest
            if tries == TRIES or time.monotonic() - began > limit_s:
                break
        in_progress = self.writers()  # first: an update that ends now is then counted
        return oldest, max(oldest + 1, version() + in_progress)


# -- copies ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """Number, time and updates of one copy."""

    number: int  # from 1
    oldest: int  # updates that are completely in it
    version: int  # updates of which at least a part may be in it
    time_ns: int  # monotonic


class Copies:
    """The copies in an arena; one process may publish, any process may read."""

    def __init__(self, arena: Arena) -> None:
        """Find the copies of an arena; ArenaError if its run publishes none."""
        self._data = arena.segment(WORDS)
        self._words = _TABLE.open(self._data)
        self._floats = (arena.segment("live.2"), arena.segment("live.1"))

    def number(self) -> int:
        """Number of the newest copy; 0 before the first."""
        return self._words["number"]

    def floats(self, number: int) -> Float32:
        """The memory of the copy with this number."""
        return self._floats[number % 2]

    def mark(self, number: int) -> int | None:
        """A number that changes when the memory of this copy is written; None during the write."""
        return _native.nobody_writes(self._data, self._at(number), LINE, 1)

    def newest(self) -> Copy | None:
        """Number, time and updates of the newest copy; None before the first."""
        while (number := self.number()) != 0:
            before, row = self.mark(number), (number + 1) % 2
            copy = Copy(number, *(self._words[k, row] for k in ("oldest", "version", "time_ns")))
            if before is not None and self.mark(number) == before and self.number() == number:
                return copy
        return None

    def take(self, out: Float32) -> Copy | None:
        """Copy the first `out.size` floats of the newest copy into `out`; None if there is no copy.

        Concurrency: never waits; it repeats the read if the copy was written meanwhile.
        """
        while (copy := self.newest()) is not None:
            before = self.mark(copy.number)
            _native.read(out, self.floats(copy.number)[: out.size])
            if before is not None and self.mark(copy.number) == before:
                return copy
        return None

    def publish(self, fill: Callable[[Float32], Updates]) -> None:
        """Write the next copy, and make it the newest; only one process may call this.

        `fill` writes the parameters into its argument, and returns the updates in it.
        """
        words, number = self._words, self.number() + 1
        row = (number + 1) % 2
        _native.begin_writing(self._data, self._at(number))
        words["time_ns", row] = monotonic_ns()
        words["oldest", row], words["version", row] = fill(self.floats(number))
        _native.end_writing(self._data, self._at(number))
        words["number"] = number

    def close(self) -> None:
        """Mark the newest copy as the last."""
        self._words["closed"] = 1

    @property
    def closed(self) -> bool:
        """Whether the newest copy is the last."""
        return self._words["closed"] != 0

    def _at(self, number: int) -> int:
        return LINE * (1 + (number + 1) % 2)


class Publisher:
    """Publishes the parameters of a run while it has readers, and once at its end."""

    def __init__(
        self,
        arena: Arena,
        server: RunServer,
        write_model: Callable[[Arena, Float32], None],
        every: Interval,
    ) -> None:
        """Start the thread, which is idle until a reader comes; `server` counts readers.

        `write_model` writes the present model, laid out as the parameters.
        """
        self._readers, self._every = server, every
        self._arena, self._write_model = arena, write_model
        self._copies, self._marks = Copies(arena), SeqlockReader(arena)
        self._averages = "copies.1" in arena.layout.segments
        self._lock = threading.Lock()  # of the thread and of callers
        self._stop = threading.Event()
        self._came = self._steps = 0
        self._published_s = self._not_before = 0.0
        self._thread = threading.Thread(target=self._run, name="mlxhog-publisher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            with self._lock:
                if self._is_due():
                    self._publish(at_rest=False)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._readers.present == 0:
            return False
        if self._readers.came != self._came:
            return True
        steps = self._arena.counters.load("version") - self._steps
        is_due = self._every.due(steps=steps, seconds=now - self._published_s)
        return is_due and now >= self._not_before

    def _publish(self, *, at_rest: bool) -> None:
        """Publish a copy, unless the newest is up to date; `at_rest` says that no worker moves."""
        began, came = time.monotonic(), self._readers.came
        version, newest = self._arena.counters.load("version"), self._copies.newest()
        is_new = newest is None or not newest.oldest == newest.version == version
        if is_new or (at_rest and self._averages):  # a meeting changes it without an update
            self._copies.publish(partial(self._copy, at_rest=at_rest))
            now = time.monotonic()
            self._steps, self._published_s = version, now
            self._not_before = now + (now - began) / COPYING_PART
        self._came = came

    def _copy(self, out: Float32, *, at_rest: bool) -> Updates:
        arena, version = self._arena, partial(self._arena.counters.load, "version")

        def copy() -> None:
            if at_rest or self._averages:
                self._write_model(arena, out)
            else:
                copy_racily(out, arena.params[: out.size])

        if not at_rest:
            return self._marks.copy(version, copy, TRIES_S)
        copy()
        return version(), version()

    def publish_at_rest(self) -> None:
        """Publish the present model if it has readers; no worker may move."""
        with self._lock:
            if not self._copies.closed and self._readers.present:
                self._publish(at_rest=True)

    def end(self) -> None:
        """Publish the final model for later readers, as the last copy; no worker may move."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        for slot in range(1, self._arena.layout.max_workers + 2):
            SeqlockCounters(self._arena, slot).end_update()
        self._publish(at_rest=True)
        self._copies.close()
