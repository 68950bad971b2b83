"""The change of a running strategy by the measured cost of rounds (`--strategy auto`).

While a run averages, every round shows how long its workers wait for each other. While it is
lock-free, the times of its gradients show how long they would wait (`choose_strategy.py`).

A change happens while all workers hold still after their step, as for a checkpoint: the supervisor
carries the optimizer's moments over, empties the segments of the other strategy and continues the
budget, and each worker builds the other strategy. No worker holds a ticket meanwhile, and one that
dies is replaced as ever. So the run is in one of the two strategies at every step, with the numbers
of that strategy alone: step size, momentum, private or shared moments, look-ahead.

Rounds need exactly the workers of the start. If others are to join, or one leaves, rounds end
first, and they do not begin again while the workers differ.

With `--async-after` the first part of the budget is trained in rounds, and they end once: workers
stop at the last round of it, if the budget is in steps or tokens.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from mlxhog.arena.process import WatchedTime
from mlxhog.config.schedules import Falling
from mlxhog.training import choose_strategy
from mlxhog.training.choose_strategy import ROUNDS, StepTime

if TYPE_CHECKING:
    from mlxhog.training.plan import TextPlan
    from mlxhog.training.run import Training


def rounds_before(plan: TextPlan) -> int | None:
    """Rounds of this call before its lock-free steps (`async_after`); None for no limit."""
    if not (after := _after(plan)) or plan.strategy.name != ROUNDS.name:
        return None
    limits, budget = [], plan.budget
    for limit, before, of_round in (
        (budget.steps, budget.progress_before, 1),
        (budget.tokens, budget.tokens_before, plan.strategy.tokens_per_step),
    ):
        if limit is not None:
            rest = (after * (limit + before) - before) / of_round
            limits.append(max(0, math.ceil(round(rest, 6))))
    return min(limits, default=None)


def _after(plan: TextPlan) -> float:
    """The share of the budget after which rounds end; 0 where measured times say so."""
    chosen = plan.stored.strategy
    return 0.0 if chosen is None else chosen.rounds_share


class Changes:
    """Decides on changes of the strategy of one run; used by the thread that supervises it."""

    def __init__(self, run: Training) -> None:
        """Watch the steps from now on."""
        self._run, self._ends = run, 0
        self._after = _after(run.plan)
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
        rounds, lock_free = choose_strategy.LAST_ROUNDS, choose_strategy.GRADIENTS << self._ends
        self._needed = rounds if self._averages() else lock_free
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
        run, steps = self._run, [list(own) for own in self._steps.values()]
        if self._after:
            done = run.budget.progress(
                steps=run.steps_done(),
                tokens=run.arena.counters.load("tokens"),
                seconds=run.monitor.seconds(),
            )
            if done > self._after - 1e-6:
                self.end_rounds(f"{self._after:.0%} of the budget is used (async_after)")
        elif run.has_side_job():
            self._last_s = self._watched.look()
        elif self._averages():
            self._look_at_rounds(steps)
        elif all(len(own) >= self._needed for own in steps):
            batch, least = run.plan.config.sequences_per_ticket, choose_strategy.LEAST_LOST
            lost = choose_strategy.rounds_would_lose(steps, batch)
            if lost < least and self._has_first_workers():
                run.change_strategy(
                    f"rounds would lose {lost:.1%} of the gradients to waiting, by the last "
                    f"{self._needed} of each worker (under {least:.1%} begins them)",
                    lost,
                )
            self._forget()

    def _look_at_rounds(self, steps: list[list[StepTime]]) -> None:
        lost, most = choose_strategy.lost_by_last_rounds(steps), choose_strategy.MOST_LOST
        absent_s = self._watched.look() - self._last_s
        if lost is not None and lost > most:
            self.end_rounds(
                f"rounds lost {lost:.0%} of their gradients to waiting in the last "
                f"{self._needed} (over {most:.0%} ends them)",
                lost,
            )
        elif absent_s > choose_strategy.ABSENT_S:
            if self._run.holding_still():  # else a round is under way
                self.end_rounds(
                    f"no round has begun for {absent_s:.1f} s, since a worker is not there"
                )
            self._last_s = self._watched.look()

    def end_rounds(self, why: str, lost: float | None = None) -> None:
        """Become lock-free if the run averages; it may fail, since workers do not hold still."""
        if self._averages():
            self._ends += self._run.change_strategy(why, lost)
            self._forget()

    def _has_first_workers(self) -> bool:
        """Whether the workers are those of the start, all up."""
        seats = self._run.seats
        present = sorted(seat.slot for seat in seats if seat.leaving_s is None)
        return len(seats) == len(self._steps) and present == list(self._steps)
