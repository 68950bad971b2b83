"""What scheduler, executors and workers say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from mlxhog.mad.result import Point, RunResult
from mlxhog.mad.run_config import RunConfig
from mlxhog.mad.watch import Watch

if TYPE_CHECKING:
    from mlxhog.mad.training.alone import Prepare


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
