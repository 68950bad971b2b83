"""The change of a running strategy by the measured cost of rounds (`--strategy auto`).

While a run averages, every round shows how long its workers wait for each other. While it is
lock-free, the times of its gradients show how long they would wait (`choose_strategy.py`).

A change happens while all workers hold still after their step, as for a checkpoint: the supervisor
carries the optimizer's moments over, empties the segments of the other strategy and continues the
budget, and each worker builds the other strategy (`terms.py`). No worker holds a ticket meanwhile,
and one that dies is replaced as ever. So the run is in one of the two strategies at every step,
with the numbers of that strategy alone: step size, momentum, private or shared moments, look-ahead.

Rounds need exactly the workers of the start. If others are to join, or one leaves, rounds end
first, and they do not begin again while the workers differ.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from mlxhog.arena.process import WatchedTime
from mlxhog.config import schedules
from mlxhog.config.schedules import Falling
from mlxhog.report.metrics import Activity, Doing
from mlxhog.training import choose_strategy, state
from mlxhog.training.choose_strategy import LOCK_FREE, ROUNDS, StepTime, title

if TYPE_CHECKING:
    from mlxhog.training.trainer import Training


class Changes:
    """Changes the strategy of one run; used by the thread that supervises it."""

    def __init__(self, run: Training) -> None:
        """Watch the steps from now on."""
        self._run = run
        self._workers = range(1, run.plan.strategy.workers + 1)
        self._rule, self._ends = choose_strategy.RULE, 0
        self._watched, self._last_s = WatchedTime(), 0.0
        self._steps: dict[int, deque[StepTime]] = {}
        self._forget()
        run.monitor.on_step = self._take

    @classmethod
    def of(cls, run: Training) -> Changes | None:
        """None where the strategy stays: it is named, or a schedule counts equal steps."""
        schedule = schedules.of(run.plan.config)
        if run.plan.other is None or (
            isinstance(schedule, Falling) and schedule.epochs is not None
        ):
            return None
        return cls(run)

    @property
    def _averages(self) -> bool:
        return self._run.plan.strategy.name == ROUNDS.name

    @property
    def _needed(self) -> int:
        """Steps of each worker that are looked at."""
        return (
            self._rule.rounds
            if self._averages
            else self._rule.gradients * self._rule.growth**self._ends
        )

    def _forget(self) -> None:
        self._steps = {slot: deque(maxlen=self._needed) for slot in self._workers}
        self._last_s = self._watched.look()

    def _take(self, slot: int, record: Any) -> None:
        """Note a step of a worker, from its record."""
        if slot in self._steps:
            tokens, compute_s, wait_s = record["tokens"], record["compute_s"], record["wait_s"]
            self._steps[slot].append(StepTime(int(tokens), float(compute_s), float(wait_s)))
        self._last_s = self._watched.look()

    # -- the rule --------------------------------------------------------------------------------

    def look(self) -> None:
        """Change the strategy if the newest steps say so."""
        now_s, supervisor = self._watched.look(), self._run.supervisor
        if supervisor.has_side_job():
            self._last_s = now_s
        elif not self._averages:
            self._look_at_gradients()
        elif (lost := self._rule.ends([list(own) for own in self._steps.values()])) is not None:
            self._end_rounds(
                f"rounds lost {lost:.0%} of their gradients to waiting in the last "
                f"{self._rule.rounds} (over {self._rule.most_lost:.0%} ends them)",
                lost,
            )
        elif now_s - self._last_s > self._rule.absent_s:
            if supervisor.holding_still():  # else a round is under way
                self._end_rounds(
                    f"no round has begun for {now_s - self._last_s:.1f} s, since a worker is not "
                    "there"
                )
            self._last_s = self._watched.look()

    def _look_at_gradients(self) -> None:
        if any(len(own) < self._needed for own in self._steps.values()):
            return
        steps = [list(own) for own in self._steps.values()]
        lost = self._rule.begins(steps, self._run.plan.strategy.config.sequences_per_ticket)
        if lost is not None and self._has_first_workers():
            self._change(
                ROUNDS.name,
                f"rounds would lose {lost:.1%} of the gradients to waiting, by the last "
                f"{self._needed} of each worker (under {self._rule.least_lost:.1%} begins them)",
                lost,
            )
        self._forget()

    def end_rounds(self, why: str) -> None:
        """Become lock-free if the run averages; it may fail, since workers do not hold still."""
        if self._averages:
            self._end_rounds(why)

    def _end_rounds(self, why: str, lost: float | None = None) -> None:
        self._ends += self._change(LOCK_FREE.name, why, lost)
        self._forget()

    def _has_first_workers(self) -> bool:
        """Whether the workers are those of the start, all up."""
        seats, workers = self._run.supervisor.seats, self._workers
        present = sorted(seat.slot for seat in seats if seat.leaving_s is None)
        return len(seats) == len(workers) and present == list(workers)

    # -- a change --------------------------------------------------------------------------------

    def _change(self, name: str, why: str, lost: float | None) -> bool:
        """Continue with the other strategy; returns whether all workers have built it."""
        run, arena = self._run, self._run.arena
        old, new = run.plan, run.plan.changed()
        with run.paused(state.pause_limit_s(arena), Activity.CHANGING) as still:
            # Rounds take tickets by number: one that a dead worker left below others comes first.
            if not still or (new.strategy.numbered and run.ledger.position()["done"]):
                return False
            run.settle()
            done, tokens = run.steps_done(), arena.counters.load("tokens")
            budget = state.start_of(new).budget.continuing(run.start.budget, done)
            limit = budget.step_limit(new.tokens_per_step, steps=done, tokens=tokens)
            sent = state.network_bytes_of_call(old, arena, run.start)
            state.change(old, new, arena)
            run.change(budget, limit, done)
            run.take_up(new, state.Start(budget, steps=done, network_bytes=sent))
            line = f"strategy {title(name)}: {why}"
            run.reporter.report(line, kind="strategy", strategy=name, lost=lost)
            built = run.supervisor.all_built
            run.until(built, Doing(Activity.CHANGING), even_if_interrupted=True)
        return True
