"""The phases of a run: its workers are commanded, waited for and paused.

The caller fills the arena, then calls `begin`, `spawn` and `begin_training`; `poll` and `until`
watch the workers meanwhile. `train` and the candidates of MAD have subclasses of their own.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlxhog.arena.control import ControlCommand
from mlxhog.arena.process import WatchedTime
from mlxhog.arena.workers import WorkerPhase, WorkerState
from mlxhog.config.budget import Budget
from mlxhog.errors import EnvironmentLacks, WorkerFailed
from mlxhog.progress import Phase, PhaseStatus
from mlxhog.strategies import Strategy
from mlxhog.training.plan.values import Plan
from mlxhog.training.supervisor.workers import Processes

FIRST_WAIT_S = 0.004
LONGER = 1.25  # growth of the waits in a phase, so that a short phase ends without delay
PAUSE_S = 10.0  # least time that workers have to finish their current step


class Session(Processes):
    """The workers of a run through its phases; used by one thread of one process."""

    poll_s = 0.05  # longest wait for the death of a worker; the first waits of a phase are shorter
    _no_step_fits = False
    step_limit: int | None = None  # steps that this call may take; None for no limit

    def __init__(
        self, plan: Plan, run_dir: Path, *, stack: ExitStack, fallback: Path | None = None
    ) -> None:
        # The parts refer to each other and to the arena: this frees them with the run, without a
        # wait for the garbage collector.
        stack.callback(vars(self).clear)
        super().__init__(plan, run_dir, stack=stack, fallback=fallback)
        self._wait_s = FIRST_WAIT_S

    @abstractmethod
    def drain(self) -> None:
        """Read the records of workers."""

    def interrupts(self) -> int:
        """Number of the user's interrupts."""
        return 0

    @property
    def strategy(self) -> Strategy:
        """The present strategy."""
        return self.plan.strategy

    # -- commands --------------------------------------------------------------------------------

    def begin(self, step_limit: int | None, until: int | None = None) -> None:
        """Set the limits, after the arena is filled and before workers start.

        `until` is the number of steps after which the strategy changes, where that is known.
        """
        self.step_limit = step_limit
        limits = [n for n in (step_limit, until) if n is not None]
        self._limit(min(limits, default=None))

    def _limit(self, steps: int | None, done: int = 0) -> None:
        self._steps_allowed = steps
        self.strategy.limit_steps(self.arena, self.ledger, steps, done)

    def begin_training(self) -> int:
        """Let workers train; returns the start of training in monotonic nanoseconds."""
        self._wait_s = FIRST_WAIT_S
        began_ns = self.clock.start()
        self.command(ControlCommand.TRAIN)
        return began_ns

    def continue_by(self, plan: Plan, budget: Budget, done: int, tokens: int) -> None:
        """Continue by another plan, for which the arena is filled; all workers are parked.

        They must hold still until they are `ready` again. `done` and `tokens` are the steps of this
        call so far, and the tokens in them.
        """
        self.plan, self.budget = plan, budget
        limit = budget.step_limit(plan.strategy.tokens_per_step, steps=done, tokens=tokens)
        self.step_limit = limit
        self.arena.counters.store("first_ticket", self.ledger.watermark)
        self._limit(None if limit is None else limit - done, done)
        self.reassign()

    def command(self, command: ControlCommand) -> None:
        """Set the command for all workers."""
        self.arena.counters.store("command", command)

    def ask(self, what: str) -> None:
        """Ask the next worker that finishes a step for an "eval" or a "sample"."""
        counters = self.arena.counters
        counters.store(f"{what}_asked", counters.load(f"{what}_taken") + 1)

    def steps_done(self) -> int:
        """Number of finished steps, exact even after deaths of workers."""
        return self.strategy.steps_done(self.arena, self.ledger)

    def budget_is_used(self) -> bool:
        """Whether no further step belongs to the budget, or fits into it."""
        count = self.arena.counters.load
        limits = [
            (self.step_limit, self.steps_done()),
            (self.budget.tokens, count("tokens") + count("tokens_elsewhere")),
        ]
        # Once no step fits, none does, although the last may be faster than those before it.
        self._no_step_fits |= not self.clock.fits(self.strategy.step_s(self.arena))
        return self._no_step_fits or any(
            limit is not None and done >= limit for limit, done in limits
        )

    def grace_s(self) -> float:
        """Return how long workers may take to finish a step after the deadline."""
        return self.clock.grace_s(self.strategy.step_s(self.arena))

    def settle(self) -> None:
        """Bring parameters and counters up to date; no worker may move."""
        self.strategy.settle(self.arena, self.ledger)

    # -- waiting ---------------------------------------------------------------------------------

    def pause_limit_s(self) -> float:
        """Return how long workers may take to pause: `PAUSE_S`, or a step of each and one more."""
        steps_s = [entry.step_s for entry in self.arena.workers if entry.state != WorkerState.FREE]
        return max(PAUSE_S, sum(steps_s) + max(steps_s, default=0.0))  # as in strategy locked

    @contextmanager
    def paused(self, why: Phase = Phase.PAUSING) -> Iterator[bool]:
        """Pause all workers after their step; yields whether they paused within `pause_limit_s`.

        The limit is longer for a worker that evaluates or samples: if all do a step together, the
        others wait for it within the step. No pause outlasts the time budget. `why` is shown to the
        user.
        """
        counters, interrupts = self.arena.counters, self.interrupts()
        still = False

        def is_decided() -> bool:
            nonlocal still
            still = self.is_quiesced()
            return still or not self.clock.left_s()

        counters.store("pause", 1)
        try:
            while not self.until(is_decided, PhaseStatus(why), self.pause_limit_s()):
                if self.interrupts() > interrupts or not self.has_background_task():
                    break
            yield still
        finally:
            counters.store("pause", 0)

    def until(
        self,
        condition: Callable[[], bool],
        doing: PhaseStatus | Callable[[], PhaseStatus],
        limit_s: float = math.inf,
        *,
        even_if_interrupted: bool = False,
    ) -> bool:
        """Watch workers until a condition holds, for `limit_s` of watching; whether it does.

        `doing` is shown to the user. An interrupt ends the wait, unless `even_if_interrupted`.

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
            activity = doing if isinstance(doing, PhaseStatus) else doing()
            if not self.has_workers():
                raise WorkerFailed(f"no worker is left for {activity}")
            self.poll(activity)
        return True

    def poll(self, doing: PhaseStatus | None = None) -> None:
        """Watch the workers for a moment, and read their records; raises as `watch`."""
        self.watch(self._wait_s)
        self._wait_s = min(self.poll_s, LONGER * self._wait_s)
        self.drain()

    # -- the end ---------------------------------------------------------------------------------

    def cancel_steps(self) -> None:
        """End every worker that is inside a step, at once and without a replacement.

        Its ticket is returned. The others stay, also those that still start: no worker begins a
        step any more, not even one that others wait for.
        """
        self.command(ControlCommand.WAIT)
        for _ in range(2):  # a worker that became ready meanwhile may have read the command before
            for handle in self.handles:
                if handle.respawn_s is not None:  # evaluations do without it
                    handle.respawn_s, handle.cancelled = None, True
            for handle in self.in_step():
                self._reap(handle)
                handle.cancelled, phase = True, WorkerPhase(self.entry(handle).phase)
                self.report(f"{handle} was still in phase {phase.name.lower()}; ended")
            time.sleep(0.02)
        if self.sidecar is not None and not self.sidecar.is_idle():
            self.sidecar.stop(0.0)

    def revive(self) -> bool:
        """Start a worker again if none is left, to evaluate; whether there is one.

        A worker that was late, and those that waited for it inside a step, were cancelled.
        """
        if not self.has_workers():
            try:
                self._spawn(self.handles[0])
            except EnvironmentLacks as error:
                self.report(f"no worker is left to evaluate the end: {error}")
        return self.has_workers()
