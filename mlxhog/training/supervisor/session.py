"""An arena and its workers through the phases of a run: commanded, waited for, paused, drained.

The caller fills the arena, then calls `begin`, `workers.spawn` and `begin_training`; `poll` and
`until` watch the workers meanwhile.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Generic

from mlxhog.arena import Arena
from mlxhog.arena.clock import Clock
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import WatchedTime
from mlxhog.arena.workers import QUIESCED, WorkerPhase
from mlxhog.config.budget import Budget
from mlxhog.display.views import Tell
from mlxhog.errors import WorkerFailed
from mlxhog.progress import Phase, PhaseStatus
from mlxhog.strategies import Strategy
from mlxhog.training.supervisor.workers import P, Workers

FIRST_WAIT_S = 0.004
LONGER = 1.25  # growth of the waits in a phase, so that a short phase ends without delay
PAUSE_S = 10.0  # least time that workers have to finish their current step


class StopNow(Exception):
    """The user interrupted twice."""


class Session(Generic[P]):
    """The arena of a run and its workers; used by one thread of one process."""

    poll_s = 0.05  # longest wait for the death of a worker; the first waits of a phase are shorter
    _no_step_fits = False
    step_limit: int | None = None  # steps that this call may take; None for no limit

    def __init__(
        self,
        plan: P,
        run_dir: Path,
        *,
        stack: ExitStack,
        report: Tell,
        on_poll: Callable[[PhaseStatus | None], None],
        interrupts: Callable[[], int] = lambda: 0,
        fallback: Path | None = None,
    ) -> None:
        """Create the arena, which the caller fills; this spawns no process.

        The end of `stack` kills the workers and closes the arena. `on_poll`, called at each `poll`,
        reads the records of workers; it gets the phase that is waited for, None while the run
        trains. `interrupts` counts the user's interrupts. If shared memory is too small, the arena
        is a file in `fallback`.
        """
        # Its caller's methods and an error's traceback hold it; they shall not hold the arena.
        stack.callback(vars(self).clear)
        self.report, self.interrupts, self._on_poll = report, interrupts, on_poll
        self.arena = stack.enter_context(
            Arena.create(plan.layout, write=plan.writers.write, fallback=fallback)
        )
        self.ledger = Ledger(self.arena)
        self.clock = Clock(self.arena.counters, plan.budget.seconds)
        self.workers = Workers(plan, run_dir, self.arena, self.ledger, self.clock, report)
        stack.callback(self.workers.stop, 0.0)
        # Bytes that strategies before the present one would have sent, and the steps until then.
        self.network_bytes_before, self._steps_before = 0, 0
        self._wait_s = FIRST_WAIT_S

    @property
    def plan(self) -> P:
        """The run, with its present strategy and workers."""
        return self.workers.plan

    @property
    def budget(self) -> Budget:
        """The budget of this call, in steps of the present strategy."""
        return self.workers.budget

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
        self.workers.steps_allowed = steps
        self.strategy.limit_steps(self.arena, self.ledger, steps, done)

    def begin_training(self) -> int:
        """Let workers train; returns the start of training in monotonic nanoseconds."""
        self._wait_s = FIRST_WAIT_S
        began_ns = self.clock.start()
        self.command(ControlCommand.TRAIN)
        return began_ns

    def continue_by(self, new: P, fill: Callable[[], None]) -> None:
        """Continue by another plan, for which `fill` fills the arena; all workers are parked.

        They must stay quiesced until they are `ready` again.
        """
        self.settle()
        done, tokens = self.steps_done(), self.arena.counters.load("tokens")
        self.network_bytes_before, self._steps_before = self.network_bytes(), done
        fill()
        budget = new.budget.continuing(self.budget, done)
        self.workers.plan, self.workers.budget = new, budget
        steps_of = partial(new.strategy.steps_of, done=self.ledger.count_done())
        limit = budget.step_limit(steps_of, steps=done, tokens=tokens)
        self.step_limit = limit
        self.arena.counters.store("first_ticket", self.ledger.watermark)
        self._limit(None if limit is None else limit - done, done)
        self.workers.reassign()

    def command(self, command: ControlCommand) -> None:
        """Set the command for all workers."""
        self.arena.counters.store("command", command)

    def ask(self, what: str) -> None:
        """Ask the next worker that finishes a step for an "eval" or a "sample"."""
        counters = self.arena.counters
        counters.store(f"{what}_asked", counters.load(f"{what}_taken") + 1)

    def settle(self) -> None:
        """Bring parameters and counters up to date; no worker may move."""
        self.strategy.settle(self.arena, self.ledger)

    # -- how far the run is ----------------------------------------------------------------------

    def steps_done(self) -> int:
        """Number of finished steps, exact even after deaths of workers."""
        return self.strategy.steps_done(self.arena, self.ledger)

    def network_bytes(self) -> int:
        """Bytes that the run would have sent; see `Strategy.network_bytes`."""
        steps = self.arena.counters.load("steps") - self._steps_before
        return self.network_bytes_before + self.strategy.network_bytes(self.arena, steps)

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

    # -- what workers are doing ------------------------------------------------------------------

    def is_drained(self) -> bool:
        """Whether every worker is up or cancelled, and none is inside a step or an evaluation.

        A dead or starting worker may have left work half done that others wait for.
        """
        return self._twice(lambda: [handle.is_idle for handle in self.workers.handles])

    def only_dead_in_step(self) -> bool:
        """Whether all workers that are inside a step or an evaluation are dead."""

        def look() -> list[bool]:
            dead = self.workers.pool.wait(0.0)
            return [handle.slot in dead for handle in self.workers.in_step()]

        return self._twice(look)

    def is_quiesced(self) -> bool:
        """Whether no worker changes the state of a checkpoint while `pause` is set.

        Others may be waiting for a starting worker, unless they are inside a collective step. A
        worker that evaluates or samples holds no ticket and writes nothing of a checkpoint. It
        claims next, and every `claim` checks `pause` before a change, except for its part in a
        joint step (`between_steps`).
        """

        def look() -> list[bool]:
            phases = [handle.entry.phase in QUIESCED for handle in self.workers.handles]
            return [*phases, self.strategy.between_steps(self.arena)]

        return self._twice(look)

    def _twice(self, look: Callable[[], list[bool]]) -> bool:
        """Whether all are true twice, with no step in between, and the sidecar is idle.

        The handshake of `pause` and `phase` has no fence; the wait in between makes it sound.
        """
        sidecar = self.workers.sidecar

        def steps() -> list[tuple[int, int]] | None:
            if not all(look()) or not (sidecar is None or sidecar.is_idle()):
                return None
            return [(one.entry.steps, one.entry.state) for one in self.workers.handles]

        if (before := steps()) is None:
            return False
        time.sleep(0.02)
        return before == steps()

    def has_background_task(self) -> bool:
        """Whether a worker evaluates or samples; this ends by itself."""
        tasks = (WorkerPhase.EVALUATE, WorkerPhase.SAMPLE)
        return any(handle.entry.phase in tasks for handle in self.workers.handles)

    # -- waiting ---------------------------------------------------------------------------------

    def pause_limit_s(self) -> float:
        """Return how long workers may take to pause: `PAUSE_S`, or a step of each and one more."""
        steps_s = [entry.step_s for entry in self.arena.workers.training()]
        of_each = sum(steps_s) + max(steps_s, default=0.0)  # as in strategy locked
        return max(PAUSE_S, of_each, 2 * self.strategy.step_s(self.arena))

    @contextmanager
    def paused(self, why: Phase = Phase.PAUSING) -> Iterator[bool]:
        """Pause all workers after their step; yields whether they are quiesced in `pause_limit_s`.

        The limit is longer for a worker that evaluates or samples: if all do a step together, the
        others wait for it within the step. No pause outlasts the time budget. `why` is shown to the
        user.
        """
        counters, interrupts = self.arena.counters, self.interrupts()
        is_quiesced = False

        def is_decided() -> bool:
            nonlocal is_quiesced
            is_quiesced = self.is_quiesced()
            return is_quiesced or not self.clock.left_s()

        counters.store("pause", 1)
        try:
            while not self.until(is_decided, PhaseStatus(why), self.pause_limit_s()):
                if self.interrupts() > interrupts or not self.has_background_task():
                    break
            yield is_quiesced
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
            if not self.workers.has_any():
                raise WorkerFailed(f"no worker is left for {activity}")
            self.poll(activity)
        return True

    def poll(self, doing: PhaseStatus | None = None) -> None:
        """Watch the workers for a moment, and call `on_poll`.

        Raises:
            StopNow: the user interrupted twice.
            MlxhogError: as `Workers.watch`.
        """
        if self.interrupts() > 1:
            raise StopNow
        self.workers.watch(self._wait_s)
        self._wait_s = min(self.poll_s, LONGER * self._wait_s)
        self._on_poll(doing)

    def cancel_steps(self) -> None:
        """End every worker that is inside a step, at once and without a replacement.

        Its ticket is returned. The others stay, also those that still start: no worker begins a
        step any more, not even one that others wait for.
        """
        workers = self.workers
        self.command(ControlCommand.WAIT)
        for _ in range(2):  # a worker that became ready meanwhile may have read the command before
            for handle in [one for one in workers.handles if one.respawn_s is not None]:
                workers.cancel(handle)  # evaluations do without it
            for handle in workers.in_step():
                workers.cancel(handle)
                phase = WorkerPhase(handle.entry.phase).name.lower()
                self.report(f"{handle} was still in phase {phase}; ended")
            time.sleep(0.02)
        if workers.sidecar is not None and not workers.sidecar.is_idle():
            workers.sidecar.stop(0.0)
