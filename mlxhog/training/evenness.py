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

A table of the arena holds the times:

    paces   float64 (workers, MOST + 1)   seconds of each gradient; last, 1 + how many there are, or
                                          0 while the worker is measuring; written by that worker
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Final

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.config.config import TrainConfig
from mlxhog.machine.workers import WorkerSpec
from mlxhog.report.metrics import Activity, Doing
from mlxhog.strategies import division

if TYPE_CHECKING:
    from mlxhog.training.session import Session

SEGMENT: Final = "paces"
MOST: Final = 100
"""Gradients of a worker that are kept."""

MEASURE_S: Final = 1.0
"""How long they are computed."""

LONGEST_S: Final = 4.0
"""The same where there are fewer than `ENOUGH` after that time."""

ENOUGH: Final = 8
LEAST: Final = 2
"""Computed by every worker, however long that takes."""

MARGIN: Final = 1.05
"""How many times the gradients of `sync` those of `hogwild` have to be.

They are late, and each is a step that its worker writes alone; but they bear what the measurement
does not see, such as another program a minute later. docs/training.md has the data.
"""


def segment(workers: int) -> dict[str, tuple[str, int]]:
    """The arena's segment of the table above."""
    return {SEGMENT: ("float64", workers * (MOST + 1))}


class Paces:
    """The times of all workers, in the arena; each worker writes its own."""

    def __init__(self, arena: Arena, workers: int) -> None:
        """Open the table."""
        self._table = arena.segment(SEGMENT).reshape(workers, MOST + 1)

    def note(self, rank: int, seconds: Sequence[float]) -> None:
        """Write down what a worker has measured."""
        kept = seconds[:MOST]
        self._table[rank, : len(kept)] = kept
        self._table[rank, MOST] = 1 + len(kept)

    def complete(self) -> bool:
        """Whether every worker has."""
        return bool((self._table[:, MOST] > 0).all())

    def seconds(self) -> list[list[float]]:
        """The times of every worker."""
        counts = [int(row[MOST]) - 1 for row in self._table]
        return [row[:count].tolist() for row, count in zip(self._table, counts, strict=True)]


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
            f"{1e3 * mean:.3g} ± {1e3 * deviation:.2g}"
            for mean, deviation in zip(self.means_s, self.deviations_s, strict=True)
        )
        name = "sync, shares by speed" if self.strategy == "sync" else self.strategy
        return (
            f"strategy {name}: a gradient takes the workers {times} ms; without waiting they "
            f"compute {self.gain:.2f} times as many as in rounds (hogwild from {MARGIN:g} on)"
        )


def measured(session: Session) -> Choice | None:
    """Let all workers that are up measure, and choose; None where the user interrupts."""
    strategy = session.strategy
    paces = Paces(session.arena, strategy.workers)
    session.supervisor.command(Command.MEASURE)
    if not session.until(paces.complete, Doing(Activity.MEASURING)):
        return None
    return choose(paces.seconds(), strategy.config.sequences_per_ticket)


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
        strategy="hogwild" if gain >= MARGIN else "sync",
        gain=gain,
        means_s=tuple(means),
        deviations_s=tuple(pstdev(times) for times in seconds),
    )


def is_enough(count: int, seconds: float) -> bool:
    """Whether a worker has measured so many gradients, in so many seconds, that it may stop."""
    limit_s = MEASURE_S if count >= ENOUGH else LONGEST_S
    return count >= LEAST and seconds >= limit_s


def guess(workers: Sequence[WorkerSpec]) -> str:
    """The strategy to be ready for before anything is measured: another one starts workers anew."""
    devices = {(worker.backend.partition(":")[2], worker.threads) for worker in workers}
    return "sync" if len(devices) == 1 else "hogwild"


def with_strategy(config: TrainConfig, strategy: str) -> TrainConfig:
    """The configuration with the options that a choice stands for."""
    shares = "speed" if strategy == "sync" else "equal"
    return replace(config, strategy=strategy, sync_shares=shares)
