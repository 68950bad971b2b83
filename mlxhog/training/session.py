"""The worker processes of a run and their arena, as `train` and candidates of MAD share them.

Who runs a session fills its arena, then calls `begin`, `supervisor.start` and `train`; `poll` and
`until` watch the workers meanwhile.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.config.budget import Budget
from mlxhog.errors import WorkerFailed
from mlxhog.machine.workers import WorkerSpec
from mlxhog.report.metrics import Activity, Doing
from mlxhog.training.job import Job, Setup
from mlxhog.training.supervisor import Supervisor

FIRST_WAIT_S = 0.004
LONGER = 1.25  # each wait of a phase than the one before: phases that are soon over end soon


class Terms(NamedTuple):
    """What a worker's job is under one of the strategies that the run may have."""

    setup: Setup
    budget: Budget
    step_limit: int | None

    def of(self, job: Job) -> Job:
        """The job under it."""
        return replace(job, **self._asdict())


class Session(ABC):
    """An arena and its workers while the run lives. Used by one thread of one process.

    A kind of run says what is shown (`report`), read from the arena (`drain`) and what interrupts.
    """

    poll_s = 0.05  # longest wait for the death of a worker; a phase begins with shorter ones

    def __init__(
        self,
        setup: Setup,
        run_dir: Path,
        *,
        stack: ExitStack,
        run_id: str,
        fallback: Path | None = None,
    ) -> None:
        """Create the arena; its parameters are for the caller to fill in.

        Args:
            setup: of the run.
            run_dir: worker logs go to its `logs` folder.
            stack: kills the workers and closes the arena when it is closed.
            run_id: stands in the arena's header.
            fallback: folder for the arena where shared memory is too small.
        """
        # Its parts refer to each other, and to the arena: what the run had goes with the run, and
        # not when the garbage collector looks next.
        stack.callback(vars(self).clear)
        self.strategy, self.run_dir = setup.strategy, run_dir
        self._setup = setup.for_workers()
        self.arena = stack.enter_context(
            Arena.create(setup.layout, write=setup.writers.write, run_id=run_id, fallback=fallback)
        )
        self.ledger = Ledger(self.arena, on_torn=setup.config.on_torn)
        self.supervisor = Supervisor(
            self.arena,
            self.ledger,
            setup.workers,
            self.strategy,
            setup.config,
            run_dir,
            self._job,
        )
        stack.callback(self.supervisor.kill)
        self._wait_s = FIRST_WAIT_S
        self._budget = Budget()
        self.step_limit: int | None = None
        self._alternatives: tuple[Terms, ...] = ()

    def _job(self, slot: int, halvings: int = 0) -> Job:
        job = Job(
            setup=self._setup,
            handle=self.arena.handle(),
            slot=slot,
            budget=self._budget,
            step_limit=self.step_limit,
            run_dir=self.run_dir,
            halvings=halvings,
        )
        return replace(job, alternatives=tuple(one.of(job) for one in self._alternatives))

    @abstractmethod
    def report(self, message: str) -> None:
        """Show the user a message."""

    @abstractmethod
    def drain(self) -> None:
        """Take in what workers have recorded."""

    def interrupts(self) -> int:
        """How often the user has interrupted."""
        return 0

    # -- phases ----------------------------------------------------------------------------------

    def begin(self, budget: Budget, step_limit: int | None) -> None:
        """Take the budget, when the arena is filled and no worker has started."""
        self._budget, self.step_limit = budget, step_limit
        self.strategy.limit_steps(self.arena, self.ledger, step_limit)

    def leave_open(self, alternatives: Sequence[Terms]) -> None:
        """Let workers start before the strategy is chosen; `decide` chooses it."""
        self._alternatives = tuple(alternatives)
        self._budget = alternatives[0].budget

    def decide(self, place: int) -> None:
        """Choose one of the strategies that were left open, when the arena is filled for it.

        Workers that are up build it, and are `ready` again when they have.
        """
        terms = self._alternatives[place]
        self.strategy, self._setup, self._alternatives = terms.setup.strategy, terms.setup, ()
        self.begin(terms.budget, terms.step_limit)
        self.supervisor.decide(self.strategy, place)

    def train(self) -> int:
        """Let workers step; returns when training began, monotonic nanoseconds."""
        began_ns = monotonic_ns()
        self._wait_s = FIRST_WAIT_S
        self.arena.counters.store("start_ns", began_ns)
        self.supervisor.command(Command.TRAIN)
        return began_ns

    def steps_done(self) -> int:
        """Steps that are over for good, exact whoever died."""
        return self.strategy.steps_done(self.arena, self.ledger)

    def settle(self) -> None:
        """Make the parameters and counters what the run has reached; nobody may move."""
        self.strategy.settle(self.arena, self.ledger)

    def ask(self, what: str) -> None:
        """Ask the next worker that finishes a step for an "eval" or a "sample"."""
        counters = self.arena.counters
        counters.store(f"{what}_asked", counters.load(f"{what}_taken") + 1)

    def add_worker(self, slot: int, spec: WorkerSpec, kernels: str) -> None:
        """Let one more worker begin, in a free slot whose optimizer state is in place."""
        self._setup = self._setup.with_worker(slot, spec, kernels)
        self.supervisor.join(slot, spec)

    def abandon(self) -> None:
        """End every worker that does not rest; its ticket goes back."""
        self.supervisor.abandon()
        self._report_messages()

    @contextmanager
    def paused(self, limit_s: float) -> Iterator[bool]:
        """Hold all workers still for a checkpoint; whether they are, within some seconds.

        A worker that evaluates or samples is given longer: where all do a step together, the others
        wait for it amid one.
        """
        counters, supervisor, interrupts = self.arena.counters, self.supervisor, self.interrupts()
        counters.store("pause", 1)
        try:
            while True:
                still = self.until(supervisor.holding_still, Doing(Activity.PAUSING), limit_s)
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
            condition: asked again and again.
            doing: shown to the user.
            limit_s: gives up after so much time in which workers were watched.
            even_if_interrupted: a first interrupt ends the wait, unless this is set.

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
        """Wait a moment, replace dead workers, pass on what is to be said of them.

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
