"""Changes of a run's strategy while it trains, by the times of its steps (`--strategy auto`)."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from mlxhog.arena.process import WatchedTime
from mlxhog.training.plan.strategy_rule import (
    ABSENT_S,
    BEGIN_AT,
    GRADIENTS,
    LAST_ROUNDS,
    ROUNDS,
    StepTime,
    lost_by_last_rounds,
    max_lost,
    rounds_share,
    rounds_would_lose,
    title,
)
from mlxhog.training.supervisor.reporting import Reporter
from mlxhog.training.supervisor.run_handle import RunHandle


class Changes:
    """Decides on changes of the strategy of one run; used by the thread that supervises it."""

    def __init__(self, run: RunHandle, reporter: Reporter) -> None:
        self._run, self._reporter, self._ends = run, reporter, 0
        self._share = rounds_share(run.plan)
        self._watched = WatchedTime()
        self._max_lost = max_lost(run.strategy.workers)
        self._forget()
        run.monitor.on_step = self._take

    def _averages(self) -> bool:
        return self._run.strategy.name == ROUNDS.name

    def _forget(self) -> None:
        """Begin to look at steps: in rounds at the last ones, else at ever more."""
        self._needed = LAST_ROUNDS if self._averages() else GRADIENTS << self._ends
        self._steps: dict[int, deque[StepTime]] = {
            slot: deque(maxlen=self._needed) for slot in range(1, self._run.strategy.workers + 1)
        }
        self._last_s = self._watched.look()

    def _take(self, slot: int, record: Any) -> None:
        if slot in self._steps:
            step = record[["tokens", "compute_s", "wait_s"]].item()
            self._steps[slot].append(StepTime(*step))
        self._last_s = self._watched.look()

    def look(self) -> None:
        """Change the strategy if the newest steps say so."""
        run, steps = self._run, [list(of_worker) for of_worker in self._steps.values()]
        absent_s = self._watched.look() - self._last_s
        if self._share:
            done = run.budget.progress(
                steps=run.steps_done(),
                tokens=run.arena.counters.load("tokens"),
                seconds=run.clock.seconds(),
            )
            if done > self._share - 1e-6:
                self.end_rounds(f"{self._share:.0%} of the budget is used (async_after)")
        elif run.has_background_task():
            self._last_s = self._watched.look()
        elif not self._averages():
            self._look_at_lock_free(steps)
        elif (lost := lost_by_last_rounds(steps)) is not None and lost > self._max_lost:
            self.end_rounds(
                f"rounds lost {lost:.0%} of their gradients to waiting in the last "
                f"{self._needed} (over {self._max_lost:.0%} ends them)",
                lost,
            )
        elif absent_s > ABSENT_S:
            if run.is_quiesced():  # else a round is under way
                self.end_rounds(
                    f"no round has begun for {absent_s:.1f} s, since a worker is not there"
                )
            self._last_s = self._watched.look()

    def _look_at_lock_free(self, steps: list[list[StepTime]]) -> None:
        if any(len(of_worker) < self._needed for of_worker in steps):
            return
        lost = rounds_would_lose(steps, self._run.plan.config.sequences_per_ticket)
        handles = self._run.handles
        all_stay = all(handle.leaving_s is None for handle in handles)
        least = BEGIN_AT * self._max_lost
        if lost < least and all_stay and {handle.slot for handle in handles} == self._steps.keys():
            self._change(
                f"rounds would lose {lost:.1%} of the gradients to waiting, by the last "
                f"{self._needed} of each worker (under {least:.1%} begins them)",
                lost,
            )
        self._forget()

    def end_rounds(self, why: str, lost: float | None = None) -> None:
        """Become lock-free if the run averages; it may fail, since workers do not hold still."""
        if self._averages():
            self._ends += self._change(why, lost)
            self._forget()

    def _change(self, why: str, lost: float | None) -> bool:
        """Continue with the other strategy if all workers hold still; whether they do.

        `lost` is the share of gradients that rounds lose, if that is the reason.
        """
        old = self._run.plan
        new = replace(old.changed(), workers=old.workers, kernels=old.kernels)
        name = new.strategy.name

        def tell() -> None:
            line = f"strategy {title(name)}: {why}"
            self._reporter.report(line, kind="strategy", strategy=name, lost=lost)

        return self._run.change_strategy(new, tell)
