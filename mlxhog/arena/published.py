"""What readers without locks rely on: seqlock counters, and the snapshots that a run publishes.

Seqlock counters: a word per worker slot, and one more for the creator, each odd while this worker
applies an update. A copy of the parameters is the model between two updates if no counter was odd
before it, and none has changed after it. Else the copy is repeated a few times; workers do not
notice it and never wait. Only an arena whose run publishes snapshots has counters; in others
counting does nothing. `metal/native/arena/control.h` argues the memory order.

Snapshots: two segments laid out like `params` alternate: while one is written, the other can be
read. One process publishes; any number of readers map the arena read-only, without a lock. A reader
that is slower than the time between two snapshots reads again. A thread of the supervisor publishes
every `--live-every` while readers are connected (`requests.py`). No worker waits for it: it takes
no lock, and starts again if an update came in between.

    live.counters   uint8    the seqlock counters, each on a cache line of its own
    live.1, live.2  float32  the snapshots; number k lies in `live.1` if k is odd
    live.words      uint8    of the run: number of the newest snapshot, 0 none; 1 after the last
                             one. Of each snapshot: its seqlock counter; its oldest and newest
                             update; its time, monotonic ns
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
"""Updates in a snapshot: those wholly in it, and those of which at least a part may be."""
COUNTERS, WORDS = "live.counters", "live.words"
TRIES = 4
WAIT_S = 0.02  # longest wait for a moment in which no worker applies an update
_MAX_NAP_S = 1e-3
POLL_S = 0.05  # interval at which the publisher looks for readers
TRIES_S = 0.02  # its time to try for a copy without an update in between
MAX_COPY_SHARE = 0.1  # of its time that the publisher copies
_TABLE = Table(run=(1, "number closed"), snapshot=(2, "counter oldest version time_ns"))


def segments(max_workers: int) -> dict[str, tuple[str, int]]:
    """The extra segments of an arena whose run publishes snapshots, for `arena.plan`."""
    return {
        "live.1": ("float32", PARAMETER_COPY),
        "live.2": ("float32", PARAMETER_COPY),
        WORDS: ("uint8", _TABLE.n_bytes),
        COUNTERS: ("uint8", LINE * (max_workers + 1)),
    }


def copy_racily(out: Float32, shared: Float32) -> None:
    """Copy (n,) float32 while others write them: floats are whole, but of different versions."""
    _native.read(out, shared)


# -- seqlock counters ------------------------------------------------------------------------------


class SeqlockCounters:
    """The counter of one writer."""

    def __init__(self, arena: Arena, slot: int) -> None:
        self._words = arena.segment(COUNTERS) if COUNTERS in arena.layout.segments else None
        self._at = LINE * (slot - 1)

    def begin_update(self) -> None:
        """Make the counter odd before the first write; idempotent until `end_update`.

        It stays odd after an error within an update, which ends the worker: the supervisor, or the
        slot's next worker, makes it even.
        """
        if self._words is not None:
            _native.begin_writing(self._words, self._at)

    def end_update(self) -> None:
        """Make the counter even, after the version was increased; also for a dead writer."""
        if self._words is not None:
            _native.end_writing(self._words, self._at)


class SeqlockReader:
    """The counters of all writers, for readers of parameters; the memory may be read-only."""

    def __init__(self, arena: Arena) -> None:
        self._words, self._n = arena.segment(COUNTERS), arena.layout.max_workers + 1

    def quiet(self) -> int | None:
        """The sum of the counters; None while a worker applies an update."""
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


# -- snapshots -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """Number, time and updates of one snapshot."""

    number: int  # from 1
    oldest: int  # updates that are completely in it
    version: int  # updates of which at least a part may be in it
    time_ns: int  # monotonic


class Snapshots:
    """The snapshots in an arena; one process may publish, any process may read."""

    def __init__(self, arena: Arena) -> None:
        """Find the snapshots of an arena; ArenaError if its run publishes none."""
        self._data = arena.segment(WORDS)
        self._words = _TABLE.open(self._data)
        self._floats = (arena.segment("live.2"), arena.segment("live.1"))

    def number(self) -> int:
        """Number of the newest snapshot; 0 before the first."""
        return self._words["number"]

    def floats(self, number: int) -> Float32:
        """The memory of the snapshot with this number."""
        return self._floats[number % 2]

    def _counter(self, number: int) -> int | None:
        """The seqlock counter of a snapshot's memory; None while it is written."""
        return _native.nobody_writes(self._data, self._at(number), LINE, 1)

    def newest(self) -> Snapshot | None:
        """Number, time and updates of the newest snapshot; None before the first."""
        newest = self._newest()
        return None if newest is None else newest[0]

    def _newest(self) -> tuple[Snapshot, int] | None:
        """The newest snapshot, and the counter of its memory."""
        while (number := self.number()) != 0:
            before, row = self._counter(number), (number + 1) % 2
            values = (self._words[name, row] for name in ("oldest", "version", "time_ns"))
            snapshot = Snapshot(number, *values)
            if before is not None and self._counter(number) == before and self.number() == number:
                return snapshot, before
        return None

    def read(self, out: Float32) -> Snapshot | None:
        """Copy the first `out.size` floats of the newest snapshot; None if there is none.

        Concurrency: never waits; it repeats the read if the snapshot was written meanwhile.
        """
        while (newest := self._newest()) is not None:
            snapshot, before = newest
            _native.read(out, self.floats(snapshot.number)[: out.size])
            if self._counter(snapshot.number) == before:
                return snapshot
        return None

    def publish(self, fill: Callable[[Float32], Updates]) -> None:
        """Write the next snapshot, and make it the newest; only one process may call this.

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
        """Mark the newest snapshot as the last."""
        self._words["closed"] = 1

    @property
    def closed(self) -> bool:
        """Whether the newest snapshot is the last."""
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
        self._snapshots, self._counters = Snapshots(arena), SeqlockReader(arena)
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
                    self._publish(quiesced=False)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._readers.present == 0:
            return False
        if self._readers.came != self._came:
            return True
        steps = self._arena.counters.load("version") - self._steps
        is_due = self._every.due(steps=steps, seconds=now - self._published_s)
        return is_due and now >= self._not_before

    def _publish(self, *, quiesced: bool) -> None:
        """Publish, unless the newest snapshot is current; `quiesced`: no worker writes."""
        began, came = time.monotonic(), self._readers.came
        version, newest = self._arena.counters.load("version"), self._snapshots.newest()
        is_new = newest is None or not newest.oldest == newest.version == version
        if is_new or (quiesced and self._averages):  # a reduce changes it without an update
            self._snapshots.publish(partial(self._copy, quiesced=quiesced))
            now = time.monotonic()
            self._steps, self._published_s = version, now
            self._not_before = now + (now - began) / MAX_COPY_SHARE
        self._came = came

    def _copy(self, out: Float32, *, quiesced: bool) -> Updates:
        arena, version = self._arena, partial(self._arena.counters.load, "version")

        def copy() -> None:
            if quiesced or self._averages:
                self._write_model(arena, out)
            else:
                copy_racily(out, arena.params[: out.size])

        if not quiesced:
            return self._counters.copy(version, copy, TRIES_S)
        copy()
        return version(), version()

    def publish_quiesced(self) -> None:
        """Publish the present model if it has readers; the workers must be quiesced."""
        with self._lock:
            if not self._snapshots.closed and self._readers.present:
                self._publish(quiesced=True)

    def end(self) -> None:
        """Publish the final model as the last snapshot; the workers must be quiesced."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        for slot in range(1, self._arena.layout.max_workers + 2):
            SeqlockCounters(self._arena, slot).end_update()
        self._publish(quiesced=True)
        self._snapshots.close()
