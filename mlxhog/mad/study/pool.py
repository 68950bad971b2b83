"""A pool of workers that execute the runs of a study: the interface, and what is said over it.

Each worker has one task at a time; the silent are ended, and the dead replaced. A worker that dies
of its own doing (a crash, an exit) has failed its run; one that was killed from outside has not,
and the run is lost: the scheduler may try it again. So are all runs of a worker that had several.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from mlxhog.arena.process import WatchedTime
from mlxhog.errors import WorkerFailed
from mlxhog.mad.run import Point, RunConfig, RunResult, Watch
from mlxhog.mad.study.record import failed

if TYPE_CHECKING:
    from mlxhog.mad.training.single import Prepare


class RunFunction(Protocol):
    """How a run is executed, such as `mad.candidate.train`; importable, so that workers find it."""

    def __call__(
        self, config: RunConfig, *, watch: Watch, rungs: tuple[int, ...], prepare: Prepare = ...
    ) -> RunResult:
        """Execute a run to its end; `prepare` is given where it is trained beside others."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run that is handed to a worker.

    Attributes:
        key: of the run.
        config: of the run.
        rungs: steps at which it asks whether to go on.
        beside: runs of the same shape, which the worker trains together with it where that is
            faster; see `mad.batched`.
    """

    key: str
    config: RunConfig
    rungs: tuple[int, ...] = ()
    beside: tuple[Task, ...] = ()

    @property
    def runs(self) -> tuple[Task, ...]:
        """This one, then those beside it."""
        return (self, *self.beside)


@dataclass(frozen=True)
class Evaluated:
    """A run has evaluated its rows; with `asks` it waits for `Executor.answer`."""

    key: str
    point: Point
    asks: bool


@dataclass(frozen=True)
class Ended:
    """A run came to its end on a host, in whatever way."""

    key: str
    result: RunResult
    host: str


@dataclass(frozen=True)
class Lost:
    """A worker is gone in the middle of a run that may not be to blame; the run can be tried again.

    It was killed from outside, or it had several runs, any of which may have ended it.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class Noted:
    """A worker says how it executes a run, such as together with those beside it, and why."""

    key: str
    text: str


News = Evaluated | Ended | Lost | Noted


class Executor(Protocol):
    """Runs tasks beside each other; a context manager that leaves no process behind.

    Concurrency: used by one thread of one process.
    """

    def free(self) -> int:
        """Return how many more tasks it takes now."""

    def submit(self, task: Task) -> str:
        """Begin a task with all its runs, and return the name of the worker that has it."""

    def news(self, timeout_s: float) -> list[News]:
        """Wait for something to happen to a task, at most so long.

        Raises:
            WorkerFailed: workers cannot start; the message holds their last words.
        """

    def answer(self, key: str, go_on: bool) -> None:
        """Answer a run that asks at a rung."""

    def __enter__(self) -> Self:
        """Get ready; workers start with their first task."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every worker at once, whatever it is doing."""


START_S = 120.0
"""A process that is being spawned on a busy machine gives no sign of life for long."""
MOST_FAILED_STARTS = 3
TICK_S = 0.5


class Died(Exception):
    """A worker is gone; `killed` says that somebody ended it, not its own doing."""

    def __init__(self, how: str, *, killed: bool) -> None:
        super().__init__(how)
        self.killed = killed


class Worker(Protocol):
    """One process that serves runs, see `serve`."""

    def tell(self, message: Task | bool) -> None:
        """Send a task, or the answer at a rung; never blocks."""

    def heard(self) -> list[tuple[Any, ...]]:
        """Return what it has said since the last call, without waiting.

        Raises:
            Died: it is gone, and everything it said has been returned.
        """

    def end(self, *, dump: bool = False) -> None:
        """End it at once; with `dump` let it write into its log where it hangs."""


@dataclass
class _Seat:
    name: str
    worker: Worker | None = None
    runs: set[str] = field(default_factory=set)  # keys of what it has and has not ended
    together: bool = False  # with others, which may have ended by now
    host: str | None = None  # None before it is ready
    began_s: float = 0.0
    heard_s: float = 0.0  # in watched time


class Pool:
    """Workers that `hire` starts and `wait` listens to.

    Args:
        parallel: workers.
        hire: starts the worker of a seat, by its number from 0.
        wait: returns when one of some workers has something to say, or after so many seconds.
        silence_s: a run that gives no sign of life for so long is ended and has failed.
    """

    def __init__(
        self,
        parallel: int,
        hire: Callable[[int], Worker],
        wait: Callable[[Sequence[Any], float], None],
        *,
        silence_s: float,
    ) -> None:
        self._seats = [_Seat(str(number + 1)) for number in range(parallel)]
        self._hire, self._wait, self._silence_s = hire, wait, silence_s
        self._failed_starts = 0
        self._watched = WatchedTime()

    def free(self) -> int:
        """See `Executor.free`."""
        return sum(not seat.runs for seat in self._seats)

    def submit(self, task: Task) -> str:
        """See `Executor.submit`; a worker that is up already is preferred."""
        idle = [seat for seat in self._seats if not seat.runs]
        seat = next((seat for seat in idle if seat.worker is not None), idle[0])
        now = time.monotonic()
        if seat.worker is None:
            seat.worker, seat.host = self._hire(self._seats.index(seat)), None
        seat.runs = {run.key for run in task.runs}
        seat.together = len(seat.runs) > 1
        seat.began_s, seat.heard_s = now, self._watched.look()
        seat.worker.tell(task)
        return seat.name

    def answer(self, key: str, go_on: bool) -> None:
        """See `Executor.answer`."""
        for seat in self._seats:
            if key in seat.runs and seat.worker is not None:
                seat.worker.tell(go_on)

    def news(self, timeout_s: float) -> list[News]:
        """See `Executor.news`."""
        deadline = time.monotonic() + timeout_s
        while True:
            events = [news for seat in self._seats for news in self._listen(seat)]
            left_s = deadline - time.monotonic()
            if events or left_s <= 0:
                return events
            self._wait([s.worker for s in self._seats if s.worker is not None], min(left_s, TICK_S))

    def _listen(self, seat: _Seat) -> list[News]:
        if seat.worker is None:
            return []
        events: list[News] = []
        try:
            for message in seat.worker.heard():
                events += self._understand(seat, *message)
                if seat.worker is None:
                    return events
        except Died as death:
            return events + self._bury(seat, death)
        return events + self._check_silence(seat)

    def _understand(
        self, seat: _Seat, word: str, key: str | None = None, what: Any = None
    ) -> list[News]:
        seat.heard_s = self._watched.look()
        if word == "ready":
            seat.host, self._failed_starts = key, 0
        elif word in ("point", "rung") and key in seat.runs:
            return [Evaluated(key, what, word == "rung")]
        elif word == "note" and key in seat.runs:
            return [Noted(key, what)]
        elif word == "end" and key in seat.runs:
            seat.runs.discard(key)
            return [Ended(key, what, seat.host or "")]
        elif word == "spent":
            return self._spent(seat, key, what)
        return []

    def _spent(self, seat: _Seat, key: str | None, result: RunResult) -> list[News]:
        """A worker ends a run, and itself."""
        self._dismiss(seat)
        if key is None and seat.runs and not seat.together:
            (key,) = seat.runs
        events: list[News] = []
        if key in seat.runs:
            seat.runs.discard(key)
            events.append(Ended(key, result, seat.host or ""))
        return events + self._lose(seat, result.reason)

    def _check_silence(self, seat: _Seat) -> list[News]:
        if not seat.runs:
            return []
        silent_s = self._watched.look() - seat.heard_s
        if seat.host is None:
            if silent_s <= max(START_S, self._silence_s):
                return []
            self._dismiss(seat)
            return self._bury(seat, Died(f"did not start within {silent_s:.0f} s", killed=False))
        if silent_s <= self._silence_s:
            return []
        self._dismiss(seat, dump=True)
        return self._settle(seat, f"gave no sign of life for {self._silence_s:g} s and was ended")

    def _bury(self, seat: _Seat, death: Died) -> list[News]:
        seat.worker = None
        if seat.host is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise WorkerFailed(
                    f"{self._failed_starts} workers in a row died while they started; the last "
                    f"{death}"
                )
        if death.killed or seat.host is None:
            return self._lose(seat, str(death))
        return self._settle(seat, str(death))

    def _settle(self, seat: _Seat, reason: str) -> list[News]:
        """The run of a worker that is gone has failed, unless another may be to blame."""
        if seat.together or not seat.runs:
            return self._lose(seat, reason)
        (key,) = seat.runs
        seat.runs.clear()
        result = failed(f"its process {reason}", seconds=time.monotonic() - seat.began_s)
        return [Ended(key, result, seat.host or "")]

    def _lose(self, seat: _Seat, reason: str) -> list[News]:
        """Every run of a worker that is gone may be tried again."""
        lost: list[News] = [Lost(key, reason) for key in sorted(seat.runs)]
        seat.runs.clear()
        return lost

    def _dismiss(self, seat: _Seat, *, dump: bool = False) -> None:
        if seat.worker is not None:
            seat.worker.end(dump=dump)
            seat.worker = None

    def __enter__(self) -> Self:
        """See `Executor.__enter__`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `Executor.__exit__`."""
        for seat in self._seats:
            self._dismiss(seat)
            seat.runs.clear()
