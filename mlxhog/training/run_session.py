"""The session of one call of `train`: signals, progress and requests while workers train."""

from __future__ import annotations

from contextlib import ExitStack

from mlxhog.base.interrupts import Interrupts
from mlxhog.checkpoint.run import Run
from mlxhog.report.metrics import Doing, Progress
from mlxhog.report.views import Observer
from mlxhog.training import checkpoints
from mlxhog.training.follow import Following
from mlxhog.training.plan import Plan
from mlxhog.training.reporting import Reporter, monitor_of
from mlxhog.training.requests import Requests
from mlxhog.training.session import WorkerSession

INTERRUPTED = "finishing the step; again stops at once"


class StopNow(Exception):
    """The user interrupted twice."""


class RunSession(WorkerSession):
    """The workers of a run that a user watches, interrupts and sends requests to.

    Attributes:
        signals: of the user.
        monitor: reads the records of workers.
        reporter: shows the progress.
        following: the followed folder; None without one.
        requests: of other commands; None before they are served.
    """

    requests: Requests | None = None

    def __init__(
        self,
        plan: Plan,
        run: Run,
        *,
        following: Following | None,
        observer: Observer[Progress] | None,
        stack: ExitStack,
    ) -> None:
        """Create the arena; the caller fills in its parameters.

        Args:
            plan: of the run.
            run: its folder.
            following: see the class.
            observer: of the caller.
            stack: on close, kills the workers and closes the arena.
        """
        folder = run.directory
        super().__init__(plan, folder, stack=stack, run_id=run.name[:64], fallback=folder)
        self.signals = Interrupts()
        self.monitor = monitor_of(plan, self.arena, checkpoints.start_of(plan).budget)
        self.reporter = Reporter(plan, run, self.monitor, observer)
        self.following, self._run = following, run

    def report(self, message: str) -> None:
        """Show the user a message."""
        self.reporter.report(message)

    def interrupts(self) -> int:
        """Number of signals so far."""
        return self.signals.count

    def poll(self, doing: Doing | None = None) -> None:
        """Watch workers for a moment, and show the progress.

        Raises:
            StopNow: the user interrupted twice.
        """
        if self.signals.count > 1:
            raise StopNow
        super().poll(doing)
        if self.signals.received:
            self.reporter.report_once(INTERRUPTED)
        if self.following is not None:
            for message in self.following.look(training=doing is None):
                self.report(message)
        self.reporter.report_now_and_then(doing)
        if self.requests is not None:
            self.requests.serve(doing)

    def drain(self) -> None:
        """Read the records of workers."""
        samples = self.monitor.samples
        self.monitor.drain()
        if self.monitor.samples > samples:
            self.reporter.sample = self._run.last_sample()
            self.reporter.record("sample", text=self.reporter.sample)
