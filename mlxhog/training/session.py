"""The worker processes of a run and their arena, for `train` and for candidates of MAD.

The caller fills the arena, then calls `begin`, `supervisor.start` and `train`; `poll` and `until`
watch the workers meanwhile.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.base.workers import WorkerSpec
from mlxhog.cluster.link import Link, LinkJob
from mlxhog.config.budget import Budget
from mlxhog.errors import WorkerFailed
from mlxhog.report.metrics import Activity, Doing
from mlxhog.training.job import Job, Setup
from mlxhog.training.supervisor import Supervisor
from mlxhog.training.terms import Terms

FIRST_WAIT_S = 0.004
LONGER = 1.25  # growth of the waits in a phase, so that a short phase ends without delay


class WorkerSession(ABC):
    """An arena and its workers; used by one thread of one process.

    Subclasses define the messages (`report`), the reading of records (`drain`) and the interrupts.
    """

    poll_s = 0.05  # longest wait for the death of a worker; the first waits of a phase are shorter

    def __init__(
        self,
        setup: Setup,
        run_dir: Path,
        *,
        stack: ExitStack,
        fallback: Path | None = None,
        other: Setup | None = None,
    ) -> None:
        """Create the arena; the caller fills in its parameters.

        Args:
            setup: of the run.
            run_dir: worker logs go to its `logs` folder.
            stack: on close, kills the workers and closes the arena.
            fallback: folder for the arena if shared memory is too small.
            other: set-up with the strategy that the run may change to.
        """
        # The parts refer to each other and to the arena: this frees them with the run, without a
        # wait for the garbage collector.
        stack.callback(vars(self).clear)
        self.strategy, self.run_dir = setup.strategy, run_dir
        self._setup = setup.for_workers()
        self._other = None if other is None else other.for_workers()
        self.arena = stack.enter_context(
            Arena.create(setup.layout, write=setup.writers.write, fallback=fallback)
        )
        self.ledger = Ledger(self.arena)
        self.supervisor = Supervisor(
            self.arena,
            self.ledger,
            setup.workers,
            self.strategy,
            setup.config,
            run_dir,
            self._job,
            None if setup.link is None else self._link(setup.link),
        )
        stack.callback(self.supervisor.kill)
        self._wait_s = FIRST_WAIT_S
        self._budget = Budget()
        self.step_limit: int | None = None

    def _link(self, job: LinkJob) -> Link:
        return Link(self.arena, replace(job, log=self.run_dir / "logs" / "link.log"))

    def _job(self, slot: int, halvings: int = 0) -> Job:
        return Job(
            setup=self._setup,
            handle=self.arena.handle(),
            slot=slot,
            budget=self._budget,
            step_limit=self.step_limit,
            run_dir=self.run_dir,
            halvings=halvings,
            other=self._other,
        )

    @abstractmethod
    def report(self, message: str) -> None:
        """Show the user a message."""

    @abstractmethod
    def drain(self) -> None:
        """Read the records of workers."""

    def interrupts(self) -> int:
        """Number of the user's interrupts."""
        return 0

    # -- phases ----------------------------------------------------------------------------------

    def begin(self, budget: Budget, step_limit: int | None) -> None:
        """Set the budget, after the arena is filled and before workers start."""
        self._budget, self.step_limit = budget, step_limit
        self.strategy.limit_steps(self.arena, self.ledger, step_limit)

    def change(self, budget: Budget, step_limit: int | None, done: int) -> None:
        """Continue with the other strategy; all workers hold still.

        The arena is filled for it. Workers must hold still until each has built it (`Terms`).

        Args:
            budget: of this call.
            step_limit: steps that this call may take; None for no limit.
            done: of these, steps that the strategies before took.
        """
        terms = Terms(self.arena)
        setup = self._setup if terms.changes % 2 else self._other
        assert setup is not None
        self.strategy = self.supervisor.strategy = setup.strategy
        self.step_limit = step_limit
        rest = None if step_limit is None else step_limit - done
        self.arena.counters.store("first_ticket", self.ledger.watermark)
        self.strategy.limit_steps(self.arena, self.ledger, rest, done)
        terms.change(budget, rest)

    def train(self) -> int:
        """Let workers train; returns the start of training in monotonic nanoseconds."""
        began_ns = monotonic_ns()
        self._wait_s = FIRST_WAIT_S
        self.arena.counters.store("start_ns", began_ns)
        self.supervisor.command(Command.TRAIN)
        return began_ns

    def steps_done(self) -> int:
        """Number of finished steps, exact even after deaths of workers."""
        return self.strategy.steps_done(self.arena, self.ledger)

    def settle(self) -> None:
        """Bring parameters and counters up to date; no worker may move."""
        self.strategy.settle(self.arena, self.ledger)

    def ask(self, what: str) -> None:
        """Ask the next worker that finishes a step for an "eval" or a "sample"."""
        counters = self.arena.counters
        counters.store(f"{what}_asked", counters.load(f"{what}_taken") + 1)

    def add_worker(self, slot: int, spec: WorkerSpec, kernels: str) -> None:
        """Start one more worker, in a free slot whose optimizer state is in place."""
        self._setup = self._setup.with_worker(slot, spec, kernels)
        if self._other is not None:
            self._other = self._other.with_worker(slot, spec, kernels)
        self.supervisor.join(slot, spec)

    def abandon(self) -> None:
        """End every worker that does not rest; its ticket is returned."""
        self.supervisor.abandon()
        self._report_messages()

    @contextmanager
    def paused(self, limit_s: float, why: Activity = Activity.PAUSING) -> Iterator[bool]:
        """Pause all workers after their step; yields whether they paused within the limit.

        The limit is longer for a worker that evaluates or samples: if all do a step together, the
        others wait for it within the step.

        Args:
            limit_s: see above.
            why: activity that is shown to the user.
        """
        counters, supervisor, interrupts = self.arena.counters, self.supervisor, self.interrupts()
        counters.store("pause", 1)
        try:
            while True:
                still = self.until(supervisor.holding_still, Doing(why), limit_s)
                if still or self.interrupts() > interrupts or not supervisor.has_side_job():
                    break
            yield still
        finally:
            counters.store("pause", 0)

    # -- watching --------------------------------------------------------------------------------

    def until(
        self,
        condition: Callable[[], bool],
        doing: Doing | Callable[[], Doing],
        limit_s: float = math.inf,
        *,
        even_if_interrupted: bool = False,
    ) -> bool:
        """Watch workers until a condition holds; returns whether it does.

        Args:
            condition: called repeatedly.
            doing: activity that is shown to the user.
            limit_s: longest wait, in time that workers were watched.
            even_if_interrupted: whether the wait continues after a first interrupt.

        Raises:
            WorkerFailed: no worker is left that could make the condition true.
        """
        watched, interrupts = WatchedTime(), self.interrupts()
        self._wait_s = FIRST_WAIT_S
        while not condition():
            if watched.look() > limit_s:
                return False
            if self.interrupts() > interrupts and not even_if_interrupted:
                return False
            activity = doing if isinstance(doing, Doing) else doing()
            if not self.supervisor.has_workers():
                raise WorkerFailed(f"no worker is left for {activity}")
            self.poll(activity)
        return True

    def poll(self, doing: Doing | None = None) -> None:
        """Wait a moment, replace dead workers, and report their messages.

        Raises:
            WorkerFailed, Diverged, ConfigError, EnvironmentLacks: see `Supervisor.poll`.
        """
        self.supervisor.poll(self._wait_s)
        self._wait_s = min(self.poll_s, LONGER * self._wait_s)
        self.drain()
        self._report_messages()

    def _report_messages(self) -> None:
        for message in self.supervisor.messages:
            self.report(message)
        self.supervisor.messages.clear()
