"""The choice of a strategy by measured gradient times of the workers (`--strategy auto`).

Lock-free workers never wait, but their gradients are late. Gradients of `sync` are never late, but
a round lasts until its last sequence is done, however `sync_shares=speed` divides the sequences.
The choice depends on the share of the workers' time that rounds would use. Before training, all
workers compute gradients at the same time for about a second. These times give the gradients per
second of each strategy:

    hogwild   sum over workers of 1 / (mean time)
    sync      P / (mean over rounds of the largest n t / B)

with n a worker's sequences, divided by mean times, B the sequences of a batch, and t the times of
a worker in the order of measurement. The second falls with waiting and with uneven or interrupted
gradients. `hogwild` is chosen if it computes at least `MARGIN` times as many gradients.

The measurement takes at most the part `SHARE` of a budget of time. If `LEAST` gradients of a worker
would take longer, as estimated from a few tokens, no worker is measured: the run gets the strategy
that suits its devices (`by_likelihood`), and a resume with more time measures.

Workers start once, before the choice, in an arena with room for either strategy
(`alternatives.py`); they build the strategy after the choice (`WorkerSession.decide`). It is the
first one: the run changes to the other when its own times say so (`change_strategy.py`).

A table of the arena holds the times; each worker writes a row of `MOST` + 2 words:

    paces   float64   MOST   seconds of each gradient
                      1      estimated seconds of a gradient, before the first
            u64       1      1 + number of measured gradients, or 0 while the worker is measuring

A worker writes the last word by a release store after the others, and readers load it first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Final

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.base.quantities import format_number
from mlxhog.base.workers import WorkerSpec
from mlxhog.config.strategies import Hogwild, Sync
from mlxhog.config.strategy import StrategyChoice
from mlxhog.report.metrics import Activity, Doing
from mlxhog.strategies import division

if TYPE_CHECKING:
    from mlxhog.training.session import WorkerSession

LOCK_FREE: Final = Hogwild()
ROUNDS: Final = Sync(shares="speed")

SEGMENT: Final = "paces"
MOST: Final = 100
"""Recorded gradients per worker."""

MEASURE_S: Final = 1.0
"""Seconds of measurement."""

LONGEST_S: Final = 4.0
"""Seconds of measurement if fewer than `ENOUGH` gradients are done after `MEASURE_S`."""

ENOUGH: Final = 8
LEAST: Final = 2
"""Gradients that every worker has to measure."""

SHARE: Final = 0.1
"""Largest part of a budget of time that the measurement may take."""

MARGIN: Final = 1.1
"""Least ratio of gradients per second, hogwild over sync, at which hogwild is chosen.

Its gradients are late, and each is a step of one worker alone; but it tolerates disturbances that
come after the measurement, such as another program. Data: schemes in benchmarks/RESULTS.md.
"""


def segment(workers: int) -> dict[str, tuple[str, int]]:
    """The arena's segment of the table above."""
    return {SEGMENT: ("float64", workers * (MOST + 2))}


class Paces:
    """The times of all workers, in the arena; each worker writes its own."""

    def __init__(self, arena: Arena, workers: int) -> None:
        """Open the table."""
        self._table = arena.segment(SEGMENT).reshape(workers, MOST + 2)
        self._data = arena.segment(SEGMENT).view(np.uint8)
        self._ends = [8 * (rank * (MOST + 2) + MOST + 1) for rank in range(workers)]

    def note(self, rank: int, expected_s: float, seconds: Sequence[float]) -> None:
        """Write a worker's measured times and its earlier estimate of a gradient's time."""
        kept = seconds[:MOST]
        self._table[rank, : len(kept)] = kept
        self._table[rank, MOST] = expected_s
        _native.store_u64(self._data, self._ends[rank], 1 + len(kept))

    def complete(self) -> bool:
        """Whether every worker has written its times."""
        return all(_native.load_u64(self._data, end) for end in self._ends)

    def seconds(self) -> list[list[float]]:
        """The measured times of every worker, once it is `complete`."""
        counts = [_native.load_u64(self._data, end) - 1 for end in self._ends]
        return [row[:count].tolist() for row, count in zip(self._table, counts, strict=True)]

    def slowest_s(self) -> float:
        """Seconds per gradient of the slowest worker, measured or else estimated."""
        pairs = zip(self.seconds(), self._table[:, MOST].tolist(), strict=True)
        return max(fmean(times or [expected_s]) for times, expected_s in pairs)


def lock_free_pays(gain: float) -> bool:
    """Whether workers should not wait for each other: the rule of `auto` and of `mlxhog advise`.

    Args:
        gain: gradients per second of hogwild over those of sync with shares by speed.
    """
    return gain >= MARGIN


@dataclass(frozen=True)
class MeasuredStrategy:
    """The chosen strategy and the measurements behind it.

    Attributes:
        strategy: hogwild or sync.
        gain: gradients per second of hogwild over those of sync.
        means_s: mean seconds per gradient of each worker.
        deviations_s: their standard deviations.
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
            f"strategy {title(self.strategy)}: a gradient takes the workers {times} ms; "
            f"without waiting they compute {self.gain:.2f} times as many as in rounds (hogwild "
            f"from {MARGIN:g} on)"
        )


@dataclass(frozen=True)
class UnmeasuredStrategy:
    """The strategy that suits the workers' devices, and the reason for no measurement.

    Attributes:
        strategy: hogwild or sync.
        gradient_s: estimated seconds per gradient of the slowest worker.
        budget_s: the run's budget of time.
    """

    strategy: str
    gradient_s: float
    budget_s: float

    def __str__(self) -> str:
        """One line for the user."""
        return (
            f"strategy {title(self.strategy)}, not measured: {LEAST} gradients of a worker, about "
            f"{LEAST * self.gradient_s:.2g} s, are over {SHARE:.0%} of {self.budget_s:.3g} s; sync "
            "is for workers on one kind of device, hogwild for others"
        )


def title(strategy: str) -> str:
    """The name of a candidate strategy in messages."""
    return f"{strategy}, shares by speed" if strategy == ROUNDS.name else strategy


def measured(
    session: WorkerSession, budget_s: float | None
) -> MeasuredStrategy | UnmeasuredStrategy | None:
    """Let all workers measure, and choose; None if the user interrupts.

    Args:
        session: its workers have started.
        budget_s: the run's budget of time; None for no such limit.
    """
    strategy = session.strategy
    paces = Paces(session.arena, strategy.workers)
    session.supervisor.command(Command.MEASURE)
    if not session.until(paces.complete, Doing(Activity.MEASURING)):
        return None
    seconds = paces.seconds()
    if budget_s is not None and any(len(times) < LEAST for times in seconds):
        return UnmeasuredStrategy(strategy.name, paces.slowest_s(), budget_s)
    return choose(seconds, strategy.config.sequences_per_ticket)


def choose(seconds: Sequence[Sequence[float]], sequences: int) -> MeasuredStrategy:
    """Choose by the times of gradients.

    Args:
        seconds: of the gradients of each worker, at least one per worker.
        sequences: per gradient.
    """
    means = [fmean(times) for times in seconds]
    lock_free = sum(1.0 / mean for mean in means)
    shares = division.sequences(sequences * len(means), [mean / sequences for mean in means])
    rounds = [
        max(share * time / sequences for share, time in zip(shares, times, strict=True))
        for times in zip(*seconds, strict=False)  # as many rounds as the slowest has gradients
    ]
    gain = lock_free * fmean(rounds) / len(means)
    return MeasuredStrategy(
        strategy=(LOCK_FREE if lock_free_pays(gain) else ROUNDS).name,
        gain=gain,
        means_s=tuple(means),
        deviations_s=tuple(pstdev(times) for times in seconds),
    )


def limit_s(budget_s: float | None) -> float:
    """How long a worker may measure, by the run's budget of time (None: it has none)."""
    return math.inf if budget_s is None else SHARE * budget_s


def is_enough(count: int, seconds: float, limit_s: float) -> bool:
    """Whether a worker has measured enough gradients to stop.

    Args:
        count: gradients measured.
        seconds: time that they took.
        limit_s: time that all of them may take.
    """
    wanted_s = MEASURE_S if count >= ENOUGH else LONGEST_S
    return seconds >= limit_s or (count >= LEAST and seconds >= wanted_s)


def by_likelihood(workers: Sequence[WorkerSpec]) -> tuple[StrategyChoice, StrategyChoice]:
    """The strategies to choose from; the first is used if the workers cannot be measured."""
    devices = {(worker.backend.partition(":")[2], worker.threads) for worker in workers}
    return (ROUNDS, LOCK_FREE) if len(devices) == 1 else (LOCK_FREE, ROUNDS)
