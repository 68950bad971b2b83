"""The change of a running strategy: rest, carry the state over, and continue by the other plan.

With `--strategy auto` the steps of the run say when (`choose_strategy.py`). It changes while all
workers hold still after their step, as for a checkpoint, so no worker holds a ticket. Each step is
in one of the two strategies, with the numbers of that strategy alone: step size, momentum, kind of
moments, look-ahead.

Rounds need exactly the workers of the start. If others are to join, or one leaves, rounds end
first, and they do not begin again while the workers differ.

With `--async-after` the first part of the budget is trained in rounds, and they end once: workers
stop at the last round of it, if the budget is in steps or tokens.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxhog.arena.process import WatchedTime
from mlxhog.config.schedules import Falling
from mlxhog.errors import EnvironmentLacks
from mlxhog.report.metrics import Activity, Doing
from mlxhog.training import choose_strategy as rule
from mlxhog.training import state
from mlxhog.training.choose_strategy import ROUNDS, StepTime, title

if TYPE_CHECKING:
    from mlxhog.training.plan import TextPlan
    from mlxhog.training.run import Training


def rounds_share(plan: TextPlan) -> float:
    """The share of the budget after which rounds end; 0 where measured times say so."""
    chosen = plan.stored.strategy
    return 0.0 if chosen is None else chosen.rounds_share


def rounds_before(plan: TextPlan) -> int | None:
    """Rounds of this call before its lock-free steps (`async_after`); None for no limit."""
    share, budget = rounds_share(plan), plan.budget
    if not share or plan.strategy.name != ROUNDS.name:
        return None
    limits = [
        max(0, math.ceil(round((share * (limit + before) - before) / of_round, 6)))
        for limit, before, of_round in (
            (budget.steps, budget.progress_before, 1),
            (budget.tokens, budget.tokens_before, plan.strategy.tokens_per_step),
        )
        if limit is not None
    ]
    return min(limits, default=None)


class Changes:
    """Decides on changes of the strategy of one run; used by the thread that supervises it."""

    def __init__(self, run: Training) -> None:
        """Watch the steps from now on."""
        self._run, self._ends = run, 0
        self._share = rounds_share(run.plan)
        self._watched = WatchedTime()
        self._forget()
        run.monitor.on_step = self._take

    @classmethod
    def of(cls, run: Training) -> Changes | None:
        """None where the strategy stays: it is named, or a schedule counts equal steps."""
        schedule = run.plan.config.schedule
        equal_steps = isinstance(schedule, Falling) and schedule.epochs is not None
        return None if run.plan.other is None or equal_steps else cls(run)

    def _averages(self) -> bool:
        return self._run.strategy.name == ROUNDS.name

    def _forget(self) -> None:
        """Begin to look at steps: in rounds at the last ones, else at ever more."""
        self._needed = rule.LAST_ROUNDS if self._averages() else rule.GRADIENTS << self._ends
        self._steps: dict[int, deque[StepTime]] = {
            slot: deque(maxlen=self._needed) for slot in range(1, self._run.strategy.workers + 1)
        }
        self._last_s = self._watched.look()

    def _take(self, slot: int, record: Any) -> None:
        if slot in self._steps:
            tokens, compute_s, wait_s = record["tokens"], record["compute_s"], record["wait_s"]
            self._steps[slot].append(StepTime(int(tokens), float(compute_s), float(wait_s)))
        self._last_s = self._watched.look()

    def look(self) -> None:
        """Change the strategy if the newest steps say so."""
        run, steps = self._run, [list(of_worker) for of_worker in self._steps.values()]
        if self._share:
            done = run.budget.progress(
                steps=run.steps_done(),
                tokens=run.arena.counters.load("tokens"),
                seconds=run.monitor.seconds(),
            )
            if done > self._share - 1e-6:
                self.end_rounds(f"{self._share:.0%} of the budget is used (async_after)")
        elif run.has_side_job():
            self._last_s = self._watched.look()
        elif self._averages():
            self._look_at_rounds(steps)
        elif all(len(of_worker) >= self._needed for of_worker in steps):
            lost = rule.rounds_would_lose(steps, run.plan.config.sequences_per_ticket)
            if lost < rule.LEAST_LOST and self._has_first_workers():
                self._change(
                    f"rounds would lose {lost:.1%} of the gradients to waiting, by the last "
                    f"{self._needed} of each worker (under {rule.LEAST_LOST:.1%} begins them)",
                    lost,
                )
            self._forget()

    def _look_at_rounds(self, steps: list[list[StepTime]]) -> None:
        lost, absent_s = (
            rule.lost_by_last_rounds(steps),
            self._watched.look() - self._last_s,
        )
        if lost is not None and lost > rule.MOST_LOST:
            self.end_rounds(
                f"rounds lost {lost:.0%} of their gradients to waiting in the last "
                f"{self._needed} (over {rule.MOST_LOST:.0%} ends them)",
                lost,
            )
        elif absent_s > rule.ABSENT_S:
            if self._run.holding_still():  # else a round is under way
                self.end_rounds(
                    f"no round has begun for {absent_s:.1f} s, since a worker is not there"
                )
            self._last_s = self._watched.look()

    def end_rounds(self, why: str, lost: float | None = None) -> None:
        """Become lock-free if the run averages; it may fail, since workers do not hold still."""
        if self._averages():
            self._ends += self._change(why, lost)
            self._forget()

    def _has_first_workers(self) -> bool:
        """Whether the workers are those of the start, all up."""
        seats = self._run.seats
        present = sorted(seat.slot for seat in seats if seat.leaving_s is None)
        return len(seats) == len(self._steps) and present == list(self._steps)

    def _change(self, why: str, lost: float | None) -> bool:
        """Continue with the other strategy if all workers hold still; whether they do.

        Args:
            why: the reason, for the user.
            lost: the share of gradients that rounds lose, if that is the reason.
        """
        run, old, doing = self._run, self._run.plan, Doing(Activity.CHANGING)
        new = replace(old.changed(), workers=old.workers, kernels=old.kernels)
        with run.paused(Activity.CHANGING) as still:
            # Rounds take tickets by number: one that a dead worker left below others comes first.
            if not still or (new.strategy.numbered and run.ledger.position()["done"]):
                return False
            run.until(run.are_recalled, doing, even_if_interrupted=True)
            run.settle()
            done, tokens = run.steps_done(), run.arena.counters.load("tokens")
            run.sent_before = done, run.network_bytes()
            state.change(old, new, run.arena)
            run.change(new, new.budget.continuing(run.budget, done), done, tokens)
            run.reporter.plan, run.monitor.budget = new, run.budget
            run.monitor.strategy = name = new.strategy.name
            with suppress(EnvironmentLacks):  # a full disk is reported for the metrics
                run.write_config()
            line = f"strategy {title(name)}: {why}"
            run.reporter.report(line, kind="strategy", strategy=name, lost=lost)
            run.until(run.ready, doing, even_if_interrupted=True)
        return True
