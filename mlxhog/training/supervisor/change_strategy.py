"""Changes of a run's strategy while it trains, by the times of its steps (`--strategy auto`)."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mlxhog.arena.process import WatchedTime
from mlxhog.errors import EnvironmentLacks
from mlxhog.progress import Phase, PhaseStatus
from mlxhog.training.plan.strategy_rule import (
    ABSENT_S,
    BEGIN_AT,
    GRADIENTS,
    LAST_STEPS,
    SYNC,
    StepTime,
    lost_by_last_steps,
    max_lost,
    sync_share,
    sync_would_lose,
    title,
)
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor import arena_state
from mlxhog.training.supervisor.reporting import Reporter
from mlxhog.training.supervisor.session import Session


class StrategyChanges:
    """Decides on changes of the strategy of one run; used by the thread that supervises it."""

    def __init__(self, session: Session[TextPlan], reporter: Reporter) -> None:
        self._session, self._reporter, self._ends = session, reporter, 0
        self._share = sync_share(session.plan)
        self._watched = WatchedTime()
        self._max_lost = max_lost(session.strategy.workers)
        self._forget()
        reporter.monitor.on_step = self._add

    def _is_sync(self) -> bool:
        return self._session.strategy.name == SYNC.name

    def _forget(self) -> None:
        """Begin to look at steps: at the last synchronous ones, else at ever more."""
        self._needed = LAST_STEPS if self._is_sync() else GRADIENTS << self._ends
        self._steps: dict[int, deque[StepTime]] = {
            slot: deque(maxlen=self._needed)
            for slot in range(1, self._session.strategy.workers + 1)
        }
        self._last_s = self._watched.look()

    def _add(self, slot: int, record: Any) -> None:
        if slot in self._steps:
            step = record[["tokens", "compute_s", "wait_s"]].item()
            self._steps[slot].append(StepTime(*step))
        self._last_s = self._watched.look()

    def look(self) -> None:
        """Change the strategy if the newest steps say so."""
        session, steps = self._session, [list(one) for one in self._steps.values()]
        absent_s = self._watched.look() - self._last_s
        if self._share:
            done = session.budget.progress(
                steps=session.steps_done(),
                tokens=session.arena.counters.load("tokens"),
                seconds=session.clock.seconds(),
            )
            limit = session.workers.steps_allowed  # by full steps; those at an epoch's end are not
            is_at_limit = limit is not None and session.steps_done() >= limit
            if done > self._share - 1e-6 or is_at_limit:
                self.end_sync(f"{self._share:.0%} of the budget is used (async_after)")
        elif session.has_background_task():
            self._last_s = self._watched.look()
        elif not self._is_sync():
            self._look_at_lock_free(steps)
        elif (lost := lost_by_last_steps(steps)) is not None and lost > self._max_lost:
            self.end_sync(
                f"synchronous steps lost {lost:.0%} of their gradients to waiting in the last "
                f"{self._needed} (over {self._max_lost:.0%} ends them)",
                lost,
            )
        elif absent_s > ABSENT_S:
            if session.is_quiesced():  # else one is under way
                self.end_sync(
                    f"no synchronous step has begun for {absent_s:.1f} s, since a worker is absent"
                )
            self._last_s = self._watched.look()

    def _look_at_lock_free(self, steps: list[list[StepTime]]) -> None:
        if any(len(of_worker) < self._needed for of_worker in steps):
            return
        lost = sync_would_lose(steps, self._session.plan.config.sequences_per_ticket)
        handles = self._session.workers.handles
        all_stay = all(handle.leaving_s is None for handle in handles)
        least = BEGIN_AT * self._max_lost
        if lost < least and all_stay and {handle.slot for handle in handles} == self._steps.keys():
            self._change(
                f"synchronous steps would lose {lost:.1%} of the gradients to waiting, by the last "
                f"{self._needed} of each worker (under {least:.1%} begins them)",
                lost,
            )
        self._forget()

    def end_sync(self, why: str, lost: float | None = None) -> None:
        """Become lock-free if the run is synchronous; it fails if workers do not pause in time."""
        if self._is_sync():
            self._ends += self._change(why, lost)
            self._forget()

    def _change(self, why: str, lost: float | None) -> bool:
        """Continue with the other strategy if all workers are quiesced; returns whether they are.

        `lost` is the share of gradients lost to waiting, if that is the reason.
        """
        session, reporter, doing = self._session, self._reporter, PhaseStatus(Phase.CHANGING)
        old, monitor = session.plan, reporter.monitor
        new = replace(old.changed(), workers=old.workers, kernels=old.kernels)
        name = new.strategy.name
        with session.paused(Phase.CHANGING) as is_quiesced:
            # They claim tickets by number: one that a dead worker left below others comes first.
            if not is_quiesced or (new.strategy.numbered and session.ledger.position()["done"]):
                return False
            session.until(session.workers.are_parked, doing, even_if_interrupted=True)
            session.continue_by(new, partial(arena_state.change, old, new, session.arena))
            reporter.plan, monitor.budget = new, session.budget
            monitor.note(strategy=name)
            with suppress(EnvironmentLacks):  # a full disk is reported for the metrics
                reporter.write_options()
            line = f"strategy {title(name)}: {why}"
            reporter.report(line, kind="strategy", strategy=name, lost=lost)
            session.until(session.workers.ready, doing, even_if_interrupted=True)
        return True
