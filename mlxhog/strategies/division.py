"""Division of a synchronous round's work: sequences by speed, parameters by cost.

Gradients of tables are the rows that each worker's batch touched:

    segment                  dtype    meaning
    index.<table>.1 .. .P    int32    the number of rows, then these rows, ascending
    grads.<table>.1 .. .P    float32  the gradients of these rows, from the first place on
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from mlxhog.config.options import option
from mlxhog.optim.gradients import GradientSum, Rows
from mlxhog.strategies.strategy import Segments, Strategy
from mlxhog.strategies.worker import TicketPart

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter
    from mlxhog.arena.words import Words

MEMORY = 0.1  # weight of the newest in the mean time of a sequence, from the tenth gradient on
OUTLIER = 4.0  # longer times of a gradient count as this multiple of the mean
FORGETTING = 0.98  # factor of the mean in a round without a sequence, so the worker gets one again


@dataclass(frozen=True, kw_only=True)
class SynchronousShares(Strategy):
    """Options of strategies with synchronous rounds, at least in the beginning."""

    shares: str = option(
        "equal",
        "sequences of each worker in a round: equal numbers, or in proportion to its measured "
        "speed",
        choices=("equal", "speed"), flat="sync_shares", train_only=True,
    )  # fmt: skip

    def stored(self) -> dict[str, str]:
        return {**super().stored(), "sync_shares": self.shares}


def sequences(
    total: int, seconds: Sequence[float], begin_s: Sequence[float] | None = None
) -> list[int]:
    """Divide sequences so that the last worker ends as soon as possible.

    Each goes to the worker that would then end first. `seconds` are the times of each worker for
    one sequence, > 0; `begin_s` is when each can begin, by default at once.
    """
    counts = [0] * len(seconds)
    begin_s = begin_s or [0.0] * len(seconds)
    done_s = [(begin_s[rank] + each_s, rank) for rank, each_s in enumerate(seconds)]
    heapq.heapify(done_s)
    for _ in range(total):
        end_s, rank = done_s[0]
        counts[rank] += 1
        heapq.heapreplace(done_s, (end_s + seconds[rank], rank))
    return counts


def parts(begin: int, end: int, each: int, first: int, n: int) -> tuple[TicketPart, ...]:
    """Return sequences `begin` to `end - 1` of tickets from `first` on, which have `each`.

    An epoch has `n` tickets.
    """
    return tuple(
        TicketPart(*divmod(first + k, n), max(0, begin - k * each), min(each, end - k * each))
        for k in range(begin // each, -(-end // each))
        if begin < end
    )


class SharesBySpeed(NamedTuple):
    """The sequences of each rank in a round, by its measured time for one (`sync.py`)."""

    words: Words
    workers: int
    each: int  # sequences of a ticket

    def publish(self) -> None:
        """Store the sequences of each rank; equal numbers until all are measured."""
        seconds = [self.words.real(("seconds", rank)) for rank in range(self.workers)]
        counts = [self.each] * self.workers
        if all(seconds):
            counts = sequences(self.each * self.workers, seconds)
        for rank, count in enumerate(counts):
            self.words["sequences", rank] = count

    def parts(self, rank: int, first: int, n: int) -> tuple[TicketPart, ...]:
        """Return a rank's sequences of a round from ticket `first` on, with `n` in an epoch."""
        begin = sum(self.words["sequences", other] for other in range(rank))
        return parts(begin, begin + self.words["sequences", rank], self.each, first, n)

    def note(self, rank: int, samples: int, took_ns: int) -> None:
        words, gradients = self.words, self.words["gradients", rank]
        mean_s = words.real(("seconds", rank))
        if samples == 0:
            words.set_real(("seconds", rank), mean_s * FORGETTING)
            return
        took_s = took_ns / 1e9 / samples
        if gradients:
            took_s = min(took_s, OUTLIER * mean_s)
        weight = max(MEMORY, 1 / (gradients + 1))
        words.set_real(("seconds", rank), mean_s + weight * (took_s - mean_s))
        words["gradients", rank] = gradients + 1


def parameters(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Return the indices of each worker's parameters, ascending: the most costly first, greedily.

    Source: Graham 1969, Bounds on multiprocessing timing anomalies: at most 4/3 of the best
    division's largest part.
    """
    loads = [0.0] * workers
    shares: list[list[int]] = [[] for _ in range(workers)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        shares[rank].append(index)
    return [sorted(share) for share in shares]


# -- rows of tables ------------------------------------------------------------------------------


def row_segments(workers: int, spec: Mapping[str, Parameter], tokens: int) -> Segments:
    """Return arena segments of the rows of tables; a worker computes at most `tokens`."""
    segments: Segments = {}
    for name, one in spec.items():
        if one.kind == "table":
            most, width = min(tokens, one.shape[0]), one.shape[1]
            for rank in range(1, workers + 1):
                segments[f"index.{name}.{rank}"] = ("int32", 1 + most)
                segments[f"grads.{name}.{rank}"] = ("float32", most * width)
    return segments


def put_rows(arena: Arena, rank: int, name: str, grad: Rows) -> None:
    """Write a worker's gradient of a table, each row once."""
    index, count = arena.segment(f"index.{name}.{rank + 1}"), len(grad.index)
    index[0], index[1 : 1 + count] = count, grad.index
    arena.segment(f"grads.{name}.{rank + 1}")[: grad.values.size] = grad.values.reshape(-1)


def mean_rows(arena: Arena, name: str, shares: Iterable[tuple[int, float]]) -> Rows:
    """Return the weighted sum of gradients of a table, of (rank, weight) in this order."""
    total, width = GradientSum(), arena.layout.tables[name].shape[1]
    for rank, share in shares:
        index = arena.segment(f"index.{name}.{rank + 1}")
        values = arena.segment(f"grads.{name}.{rank + 1}").reshape(-1, width)
        total.add({name: Rows(index[1 : 1 + index[0]], values[: index[0]])}, share)
    return cast(Rows, total.grads()[name])
