"""A pool of workers that execute the runs of a study, and their messages.

Each worker has one task at a time. Silent workers are ended, dead ones replaced. If a worker dies
by its own fault (a crash, an exit), its run has failed. If it was killed from outside, the run is
lost and the scheduler may repeat it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from mlxhog.arena.process import WatchedTime
from mlxhog.errors import WorkerFailed
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunResult, failed


class RunFunction(Protocol):
    """A function that executes a run, such as `candidate.train`; workers import it."""

    def __call__(
        self,
        config: RunConfig,
        *,
        callbacks: Callbacks,
        rungs: tuple[int, ...],
    ) -> RunResult:
        """Execute a run to its end."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run that is handed to a worker.

    Attributes:
        key: of the run.
        config: of the run.
        rungs: steps at which it may be pruned.
    """

    key: str
    config: RunConfig
    rungs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a run; at a rung the run waits for `Pool.answer`."""

    key: str
    point: Point
    at_rung: bool


@dataclass(frozen=True)
class Ended:
    """The end of a run on a host, with any status."""

    key: str
    result: RunResult
    host: str


@dataclass(frozen=True)
class Lost:
    """A run whose worker was killed from outside; it can be repeated."""

    key: str
    reason: str


Event = Evaluated | Ended | Lost


START_S = 120.0
"""Seconds for the start of a process, which takes long on a busy machine."""
MOST_FAILED_STARTS = 3
TICK_S = 0.5


class WorkerDied(Exception):
    """A worker died; `killed` from outside, else by its own fault."""

    def __init__(self, how: str, *, killed: bool) -> None:
        super().__init__(how)
        self.killed = killed


class PoolWorker(Protocol):
    """One process that serves runs, see `serve`."""

    def send(self, message: Task | bool) -> None:
        """Send a task, or the answer at a rung, without waiting."""

    def receive_all(self) -> list[tuple[Any, ...]]:
        """Return its messages since the last call, without waiting.

        Raises:
            WorkerDied: it died, and all its messages were returned.
        """

    def end(self, *, dump: bool = False) -> None:
        """End it at once; with `dump` it first writes its stack into its log."""


@dataclass
class _Slot:
    name: str
    worker: PoolWorker | None = None
    run: str | None = None  # key of its run
    host: str | None = None  # None before it is ready
    began_s: float = 0.0
    last_message_s: float = 0.0  # in watched time


class Pool:
    """Workers that `start_worker` starts, by number from 0; none outlives the `with` block.

    `wait` returns at a message of one of some workers, or after a number of seconds. A run without
    a sign of life for `silence_s` is ended and has failed.
    """

    def __init__(
        self,
        parallel: int,
        start_worker: Callable[[int], PoolWorker],
        wait: Callable[[Sequence[Any], float], None],
        *,
        silence_s: float,
    ) -> None:
        self._slots = [_Slot(str(number + 1)) for number in range(parallel)]
        self._start_worker, self._wait, self._silence_s = start_worker, wait, silence_s
        self._failed_starts = 0
        self._watched = WatchedTime()

    def free(self) -> int:
        """Return the number of idle workers."""
        return sum(slot.run is None for slot in self._slots)

    def submit(self, task: Task) -> str:
        """Begin a task, preferably in a running worker; return the name of the worker."""
        idle = [slot for slot in self._slots if slot.run is None]
        slot = next((slot for slot in idle if slot.worker is not None), idle[0])
        now = time.monotonic()
        if slot.worker is None:
            slot.worker, slot.host = self._start_worker(self._slots.index(slot)), None
        slot.run = task.key
        slot.began_s, slot.last_message_s = now, self._watched.look()
        slot.worker.send(task)
        return slot.name

    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""
        for slot in self._slots:
            if key == slot.run and slot.worker is not None:
                slot.worker.send(prune)

    def events(self, timeout_s: float) -> list[Event]:
        """Wait for events of tasks, at most `timeout_s`; end silent workers.

        Raises:
            WorkerFailed: workers cannot start; the message has the reason.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            events = [event for slot in self._slots for event in self._listen(slot)]
            left_s = deadline - time.monotonic()
            if events or left_s <= 0:
                return events
            self._wait([s.worker for s in self._slots if s.worker is not None], min(left_s, TICK_S))

    def _listen(self, slot: _Slot) -> list[Event]:
        if slot.worker is None:
            return []
        events: list[Event] = []
        try:
            for message in slot.worker.receive_all():
                events += self._handle(slot, *message)
                if slot.worker is None:
                    return events
        except WorkerDied as error:
            return events + self._reap(slot, error)
        return events + self._check_silence(slot)

    def _handle(self, slot: _Slot, word: str, what: Any = None) -> list[Event]:
        slot.last_message_s = self._watched.look()
        if word == "ready":
            slot.host, self._failed_starts = what, 0
        elif slot.run is not None and word in ("point", "rung"):
            return [Evaluated(slot.run, what, word == "rung")]
        elif word == "spent":  # the run ends, and its worker
            self._stop(slot)
        if slot.run is not None and word in ("end", "spent"):
            key, slot.run = slot.run, None
            return [Ended(key, what, slot.host or "")]
        return []

    def _check_silence(self, slot: _Slot) -> list[Event]:
        if slot.run is None:
            return []
        silent_s = self._watched.look() - slot.last_message_s
        if slot.host is None:
            if silent_s <= max(START_S, self._silence_s):
                return []
            self._stop(slot)
            return self._reap(
                slot, WorkerDied(f"did not start within {silent_s:.0f} s", killed=False)
            )
        if silent_s <= self._silence_s:
            return []
        self._stop(slot, dump=True)
        return self._fail(slot, f"gave no sign of life for {self._silence_s:g} s and was ended")

    def _reap(self, slot: _Slot, error: WorkerDied) -> list[Event]:
        slot.worker = None
        if slot.host is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise WorkerFailed(
                    f"{self._failed_starts} workers in a row died while they started; the last "
                    f"{error}"
                )
        if error.killed or slot.host is None:
            return self._report_lost(slot, str(error))
        return self._fail(slot, str(error))

    def _fail(self, slot: _Slot, reason: str) -> list[Event]:
        """End the run of a dead worker as failed."""
        key, slot.run = slot.run, None
        result = failed(f"its process {reason}", seconds=time.monotonic() - slot.began_s)
        return [] if key is None else [Ended(key, result, slot.host or "")]

    def _report_lost(self, slot: _Slot, reason: str) -> list[Event]:
        """End the run of a dead worker as lost."""
        key, slot.run = slot.run, None
        return [] if key is None else [Lost(key, reason)]

    def _stop(self, slot: _Slot, *, dump: bool = False) -> None:
        if slot.worker is not None:
            slot.worker.end(dump=dump)
            slot.worker = None

    def __enter__(self) -> Self:
        """Return the pool; workers start with their first task."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker."""
        for slot in self._slots:
            self._stop(slot)
            slot.run = None
