"""Publishing copies of the parameters, by a thread of the supervisor's process.

While a reader has the run open, a copy is published every `--live-every`, in the memory of the one
before the last (`mlxhog/arena/published.py`). No worker waits for it: it takes no lock, and starts
again if an update came in between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from mlxhog.arena import Arena
from mlxhog.arena.published import Copies, Marks, MarksReader, Updates, copy_racily
from mlxhog.arena.requests import RunServer
from mlxhog.base.quantities import Interval
from mlxhog.optim.updates import Float32

POLL_S = 0.05
TRIES_S = 0.02  # time to try for a copy without an update in between
COPYING_PART = 0.1  # largest part of the time for copying


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
        self._readers = server
        self._arena, self._write_model, self._every = arena, write_model, every
        self._copies, self._marks = Copies(arena), MarksReader(arena)
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
        now, came = time.monotonic(), self._readers.came
        if came != self._came:
            return self._readers.present > 0
        steps = self._arena.counters.load("version") - self._steps
        is_due = self._every.due(steps=steps, seconds=now - self._published_s)
        return is_due and self._readers.present > 0 and now >= self._not_before

    def _publish(self, *, at_rest: bool) -> None:
        """Publish a copy, unless the newest is up to date; `at_rest` says that no worker moves."""
        came, version = self._readers.came, self._arena.counters.load("version")
        newest = self._copies.newest()
        is_new = newest is not None and newest.oldest == newest.version == version
        if is_new and not (at_rest and self._averages):  # a meeting changes it without an update
            self._came = came
            return
        began = time.monotonic()
        self._copies.publish(partial(self._copy, at_rest=at_rest))
        now = time.monotonic()
        self._came, self._steps, self._published_s = came, version, now
        self._not_before = now + (now - began) / COPYING_PART

    def _copy(self, out: Float32, *, at_rest: bool) -> Updates:
        arena, version = self._arena, partial(self._arena.counters.load, "version")

        def copy() -> None:
            if at_rest or self._averages:
                self._write_model(arena, out)
            else:
                copy_racily(out, arena.params[: out.size])

        if at_rest:
            copy()
            return version(), version()
        return self._marks.copy(version, copy, TRIES_S)

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
            Marks(self._arena, slot).end_update()
        self._publish(at_rest=True)
        self._copies.close()
