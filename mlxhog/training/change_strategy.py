"""The change of a running strategy by the measured cost of rounds (`--strategy auto`).

While a run averages, every round shows how long its workers wait for each other. While it is
lock-free, the times of its gradients show how long they would wait. Both give the share of the
gradients that rounds lose:

    in rounds     1 - n / (T sum over workers of n_w / c_w), n_w the tokens of a worker in the last
                  rounds, n their sum, c_w its seconds of computing, T the mean over workers of
                  c_w and its seconds of waiting
    lock-free     1 - 1 / gain, with the gain of `choose_strategy.choose`

`ChangeRule` compares it with two limits. A change happens while all workers hold still after their
step, as for a checkpoint: the supervisor carries the optimizer's moments over, empties the segments
of the other strategy and continues the budget, and each worker builds the other strategy
(`terms.py`). No worker holds a ticket meanwhile, and one that dies is replaced as ever. So the run
is in one of the two strategies at every step, with the numbers of that strategy alone: step size,
momentum, private or shared moments, look-ahead.

Rounds need exactly the workers of the start. If others are to join, or one leaves, rounds end
first, and they do not begin again while the workers differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final, NamedTuple

from mlxhog.arena.process import WatchedTime
from mlxhog.config import schedules
from mlxhog.config.schedules import Falling
from mlxhog.report.metrics import Activity, Doing
from mlxhog.training import checkpoints, choose_strategy, moments
from mlxhog.training.checkpoints import Start
from mlxhog.training.choose_strategy import LOCK_FREE, MARGIN, ROUNDS
from mlxhog.training.plan import Plan
from mlxhog.training.run_session import RunSession


@dataclass(frozen=True, kw_only=True)
class ChangeRule:
    """When rounds end, and when they begin again.

    Attributes:
        most_lost: share of the gradients that rounds may lose to waiting (X). Gradients that are
            never late are worth about 13 % (docs/numbers.md). Rounds of two equal workers lose
            7 %, to three barriers and to uneven gradients.
        rounds: number of last rounds that are looked at (N): a second or two of a small model, so
            that a worker that becomes slow costs little. The longest is left out: one pause of a
            worker, whatever its reason, does not show that there will be another.
        least_lost: share below which rounds begin again: the limit of the choice at the start. It
            is far below `most_lost`, so that a run near one limit does not meet the other.
        gradients: of each worker that show it (M), one after another: twice `rounds`, since a
            late end of rounds costs more than a late begin.
        growth: factor of `gradients` after each end of rounds, so that a run whose workers are
            disturbed now and then changes ever more rarely.
        absent_s: seconds without a round, because a worker is not there, after which rounds end:
            less than the restart of a worker takes, more than any pause between rounds.
    """

    most_lost: float = 0.15
    rounds: int = 32
    least_lost: float = 1 - 1 / MARGIN
    gradients: int = 64
    growth: int = 2
    absent_s: float = 1.0

    def ends(self, steps: Sequence[Sequence[StepTime]]) -> float | None:
        """The share that the last rounds lost, if it ends them.

        Args:
            steps: of each worker in these rounds.
        """
        if any(len(own) < self.rounds for own in steps):
            return None
        last = [sorted(own[-self.rounds :], key=StepTime.lasted_s)[:-1] for own in steps]
        lost = lost_in_rounds(last)
        return lost if lost > self.most_lost else None

    def begins(self, steps: Sequence[Sequence[StepTime]], sequences: int) -> float | None:
        """The share that rounds would lose, if they begin.

        Args:
            steps: lock-free ones of each worker.
            sequences: of a gradient.
        """
        seconds = [[one.compute_s for one in own] for own in steps]
        lost = 1 - 1 / choose_strategy.choose(seconds, sequences).gain
        return lost if lost < self.least_lost else None


RULE: Final = ChangeRule()


class StepTime(NamedTuple):
    """Tokens and times of a worker's step."""

    tokens: int
    compute_s: float
    wait_s: float

    def lasted_s(self) -> float:
        """Seconds of its round."""
        return self.compute_s + self.wait_s


def lost_in_rounds(steps: Sequence[Sequence[StepTime]]) -> float:
    """Share of the gradients that rounds lost to waiting.

    Args:
        steps: of each worker in the same rounds, at least one.
    """
    tokens = [sum(one.tokens for one in own) for own in steps]
    computed_s = [sum(one.compute_s for one in own) for own in steps]
    lasted_s = fmean(sum(one.lasted_s() for one in own) for own in steps)
    per_s = sum(n / s for n, s in zip(tokens, computed_s, strict=True) if n)
    return 1 - sum(tokens) / (lasted_s * per_s) if per_s else 0.0


TakeUp = Callable[[Plan, Start], None]
"""Makes the rest of a run use a plan, and the state in which it begins."""


class Changes:
    """Changes the strategy of one run; used by the thread that supervises it."""

    def __init__(self, session: RunSession, plan: Plan, start: Start, take_up: TakeUp) -> None:
        """Watch the steps from now on.

        Args:
            session: of the run.
            plan: with the strategy that is chosen, and its alternatives.
            start: the state in which it begins.
            take_up: called with each change.
        """
        self._session, self._plan, self._start = session, plan, start
        self._take_up = take_up
        self._workers = range(1, plan.strategy.workers + 1)
        self._ends = 0
        self._watched, self._last_s = WatchedTime(), 0.0
        self._steps: dict[int, deque[StepTime]] = {}
        self._forget()
        session.monitor.on_step = self._take

    @classmethod
    def of(cls, session: RunSession, plan: Plan, start: Start, take_up: TakeUp) -> Changes | None:
        """None where the first strategy stays: a schedule counts passes in steps of one size."""
        schedule = schedules.of(plan.config)
        if isinstance(schedule, Falling) and schedule.epochs is not None:
            return None
        return cls(session, plan, start, take_up)

    @property
    def _averages(self) -> bool:
        return self._plan.strategy.name == ROUNDS.name

    @property
    def _needed(self) -> int:
        """Steps of each worker that are looked at."""
        return RULE.rounds if self._averages else RULE.gradients * RULE.growth**self._ends

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
        now_s, supervisor = self._watched.look(), self._session.supervisor
        if supervisor.has_side_job():
            self._last_s = now_s
        elif not self._averages:
            self._look_at_gradients()
        elif (lost := RULE.ends([list(own) for own in self._steps.values()])) is not None:
            self._end_rounds(
                f"rounds lost {lost:.0%} of their gradients to waiting in the last {RULE.rounds} "
                f"(over {RULE.most_lost:.0%} ends them)",
                lost,
            )
        elif now_s - self._last_s > RULE.absent_s:
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
        lost = RULE.begins(steps, self._plan.strategy.config.sequences_per_ticket)
        if lost is not None and self._has_first_workers():
            self._change(
                ROUNDS.name,
                f"rounds would lose {lost:.1%} of the gradients to waiting, by the last "
                f"{self._needed} of each worker (under {RULE.least_lost:.1%} begins them)",
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
        seats, workers = self._session.supervisor.seats, self._workers
        present = sorted(seat.slot for seat in seats if seat.leaving_s is None)
        return len(seats) == len(workers) and present == list(workers)

    # -- a change --------------------------------------------------------------------------------

    def _change(self, name: str, why: str, lost: float | None) -> bool:
        """Continue with the other strategy; returns whether all workers have built it."""
        session, arena = self._session, self._session.arena
        new = self._plan.with_strategy(name, measured=True)
        with session.paused(checkpoints.pause_limit_s(arena), Activity.CHANGING) as still:
            # Rounds take tickets by number: one that a dead worker left below others comes first.
            if not still or (new.strategy.numbered and session.ledger.position()["done"]):
                return False
            session.settle()
            done, tokens = session.steps_done(), arena.counters.load("tokens")
            budget = checkpoints.start_of(new).budget.continuing(self._start.budget, done)
            limit = budget.step_limit(new.tokens_per_step, steps=done, tokens=tokens)
            sent = checkpoints.network_bytes_of_call(self._plan, arena, self._start)
            moments.carry_over(self._plan, new, arena)
            session.change(new.place(name), budget, limit, done)
            self._plan, self._start = new, Start(budget, steps=done, network_bytes=sent)
            self._take_up(new, self._start)
            session.monitor.budget = replace(budget, seconds=session.monitor.budget.seconds)
            line = f"strategy {choose_strategy.title(name)}: {why}"
            session.reporter.report(line, kind="strategy", strategy=name, lost=lost)
            built = session.supervisor.all_built
            session.until(built, Doing(Activity.CHANGING), even_if_interrupted=True)
        return True


__all__ = ["RULE", "ChangeRule", "Changes", "StepTime", "lost_in_rounds"]
