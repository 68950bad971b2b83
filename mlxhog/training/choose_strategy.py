"""Evenness of the workers of a run, measured, and the strategy that fits (`--strategy auto`).

Lock-free workers never wait, and pay with gradients that are late. Gradients of `sync` are never
late, and a round lasts until its last sequence is done, however `sync_shares=speed` divides them.
So what matters is how much of the workers' time rounds would use. Before training all workers
compute gradients at the same time for a second or a little more, and from these times follow the
gradients per second of either strategy:

    hogwild   sum over workers of 1 / (mean time)
    sync      P / (mean over rounds of the largest n t / B)

with n the sequences of the division by mean times, B those of a batch, and t the times of a worker
in the order in which they were measured. Waiting, unevenly long or interrupted gradients all show
in the second. `hogwild` is chosen where it computes at least `MARGIN` times as many gradients.

Of a budget of time this takes up to the part `SHARE`. Where `LEAST` gradients of a worker take
longer, by the time that a few tokens of it take, no worker is judged: the run gets the strategy
that its workers look made for (`by_likelihood`), and a run that is resumed with more time measures.

Workers are started once, before the choice, in an arena with room for either strategy
(`alternatives.py`); what a worker needs of a strategy it builds when the choice is made
(`Session.decide`).

A table of the arena holds the times; each worker writes a row of `MOST` + 2 numbers:

    paces   float64   MOST   seconds of each gradient
                      1      those that a gradient will take, as known before the first
                      1      1 + how many there are, or 0 while the worker is measuring
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Final

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.config.strategies import Hogwild, Sync
from mlxhog.config.strategy import StrategyChoice
from mlxhog.files.quantities import format_number
from mlxhog.machine.workers import WorkerSpec
from mlxhog.report.metrics import Activity, Doing
from mlxhog.strategies import division

if TYPE_CHECKING:
    from mlxhog.training.session import Session

LOCK_FREE: Final = Hogwild()
ROUNDS: Final = Sync(shares="speed")

SEGMENT: Final = "paces"
MOST: Final = 100
"""Gradients of a worker that are kept."""

MEASURE_S: Final = 1.0
"""How long they are computed."""

LONGEST_S: Final = 4.0
"""The same where there are fewer than `ENOUGH` after that time."""

ENOUGH: Final = 8
LEAST: Final = 2
"""Of every worker, or none is judged."""

SHARE: Final = 0.1
"""Of a budget of time that may be spent."""

MARGIN: Final = 1.05
"""How many times the gradients of `sync` those of `hogwild` have to be.

They are late, and each is a step that its worker writes alone; but they bear what the measurement
does not see, such as another program a minute later. docs/training.md has the data.
"""


def segment(workers: int) -> dict[str, tuple[str, int]]:
    """The arena's segment of the table above."""
    return {SEGMENT: ("float64", workers * (MOST + 2))}


class Paces:
    """The times of all workers, in the arena; each worker writes its own."""

    def __init__(self, arena: Arena, workers: int) -> None:
        """Open the table."""
        self._table = arena.segment(SEGMENT).reshape(workers, MOST + 2)

    def note(self, rank: int, expected_s: float, seconds: Sequence[float]) -> None:
        """Write down what a worker has measured, and what it expected of a gradient before."""
        kept = seconds[:MOST]
        self._table[rank, : len(kept)] = kept
        self._table[rank, MOST] = expected_s
        self._table[rank, MOST + 1] = 1 + len(kept)

    def complete(self) -> bool:
        """Whether every worker has."""
        return bool((self._table[:, MOST + 1] > 0).all())

    def seconds(self) -> list[list[float]]:
        """The times of every worker."""
        counts = [int(row[MOST + 1]) - 1 for row in self._table]
        return [row[:count].tolist() for row, count in zip(self._table, counts, strict=True)]

    def slowest_s(self) -> float:
        """About how long a gradient takes the slowest worker: measured, or as expected."""
        pairs = zip(self.seconds(), self._table[:, MOST].tolist(), strict=True)
        return max(fmean(times or [expected_s]) for times, expected_s in pairs)


def lock_free_pays(gain: float) -> bool:
    """Whether workers should not wait for each other: the rule of `auto` and of `mlxhog advise`.

    Args:
        gain: gradients per second of hogwild over those of sync, its shares by speed.
    """
    return gain >= MARGIN


@dataclass(frozen=True)
class Choice:
    """A strategy, and the figures that it was chosen by.

    Attributes:
        strategy: hogwild or sync.
        gain: gradients per second of hogwild over those of sync.
        means_s: seconds that a gradient takes each worker.
        deviations_s: how far single ones are from that, root mean square.
    """

    strategy: str
    gain: float
    means_s: tuple[float, ...]
    deviations_s: tuple[float, ...]

    def __str__(self) -> str:
        """One line for the user."""
        times = ", ".join(
            f"{format_number(1e3 * mean)} ± {format_number(1e3 * deviation)}"
            for mean, deviation in zip(self.means_s, self.deviations_s, strict=True)
        )
        return (
            f"strategy {_title(self.strategy)}: a gradient takes the workers {times} ms; "
            f"without waiting they compute {self.gain:.2f} times as many as in rounds (hogwild "
            f"from {MARGIN:g} on)"
        )


@dataclass(frozen=True)
class Unmeasured:
    """The strategy for workers that look like these, and why they were not measured.

    Attributes:
        strategy: hogwild or sync.
        gradient_s: what a gradient takes the slowest worker.
        budget_s: the run's.
    """

    strategy: str
    gradient_s: float
    budget_s: float

    def __str__(self) -> str:
        """One line for the user."""
        return (
            f"strategy {_title(self.strategy)}, not measured: {LEAST} gradients of a worker, about "
            f"{LEAST * self.gradient_s:.2g} s, are over {SHARE:.0%} of {self.budget_s:.3g} s; sync "
            "is for workers on one kind of device, hogwild for others"
        )


def _title(strategy: str) -> str:
    return f"{strategy}, shares by speed" if strategy == ROUNDS.name else strategy


def measured(session: Session, budget_s: float | None) -> Choice | Unmeasured | None:
    """Let all workers that are up measure, and choose; None where the user interrupts.

    Args:
        session: whose workers are up.
        budget_s: the time that it has, None without such a limit.
    """
    strategy = session.strategy
    paces = Paces(session.arena, strategy.workers)
    session.supervisor.command(Command.MEASURE)
    if not session.until(paces.complete, Doing(Activity.MEASURING)):
        return None
    seconds = paces.seconds()
    if budget_s is not None and any(len(times) < LEAST for times in seconds):
        return Unmeasured(strategy.name, paces.slowest_s(), budget_s)
    return choose(seconds, strategy.facts.sequences)


def choose(seconds: Sequence[Sequence[float]], sequences: int) -> Choice:
    """Choose by the times of gradients.

    Args:
        seconds: of each worker, one at least.
        sequences: in a gradient.
    """
    means = [fmean(times) for times in seconds]
    lock_free = sum(1.0 / mean for mean in means)
    shares = division.sequences(sequences * len(means), [mean / sequences for mean in means])
    rounds = [
        max(share * time / sequences for share, time in zip(shares, times, strict=True))
        for times in zip(*seconds, strict=False)  # as many rounds as the slowest has gradients
    ]
    gain = lock_free * fmean(rounds) / len(means)
    return Choice(
        strategy=(LOCK_FREE if lock_free_pays(gain) else ROUNDS).name,
        gain=gain,
        means_s=tuple(means),
        deviations_s=tuple(pstdev(times) for times in seconds),
    )


def limit_s(budget_s: float | None) -> float:
    """How long a worker may measure in a run with a budget of time, or None without one."""
    return math.inf if budget_s is None else SHARE * budget_s


def is_enough(count: int, seconds: float, limit_s: float) -> bool:
    """Whether a worker has measured so many gradients, in so many seconds, that it may stop.

    Args:
        count: gradients.
        seconds: that they took.
        limit_s: that all of them may take.
    """
    wanted_s = MEASURE_S if count >= ENOUGH else LONGEST_S
    return seconds >= limit_s or (count >= LEAST and seconds >= wanted_s)


def by_likelihood(workers: Sequence[WorkerSpec]) -> tuple[StrategyChoice, StrategyChoice]:
    """The strategies to choose from; the first is for workers that cannot be measured."""
    devices = {(worker.backend.partition(":")[2], worker.threads) for worker in workers}
    return (ROUNDS, LOCK_FREE) if len(devices) == 1 else (LOCK_FREE, ROUNDS)
