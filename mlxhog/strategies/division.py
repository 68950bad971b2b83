"""How workers of a synchronous round divide its work: sequences by speed, parameters by cost."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from mlxhog.arena.layout import Slot
from mlxhog.optim import Muon, Optimizer
from mlxhog.optim.muon import ORTHOGONALIZATIONS
from mlxhog.optim.soap import Soap
from mlxhog.strategies.context import Part
from mlxhog.strategies.control_words import Words

MEMORY = 0.1
"""Weight of the newest gradient in the mean time of a sequence, once there have been ten."""

OUTLIER = 4.0
"""A gradient counts as so many times slower than that mean at most."""

FORGETTING = 0.98
"""Factor of that time in a round without a sequence, so that the worker is tried again some day."""

OPERATIONS_PER_NUMBER = 150
"""Operations of matrix products that take as long as one number of a parameter that AdamW moves.

That number is averaged over the workers' gradients, squared for the norm, and applied.
"""


def sequences(total: int, seconds: Sequence[float]) -> list[int]:
    """Deal out sequences so that the worker that needs longest is done as soon as possible.

    One after the other goes to the worker that would then be done first, of equal ones to the first
    in the list. A worker that would hold up the others with a single sequence gets none.

    Args:
        total: sequences to deal out.
        seconds: that each worker takes for one, > 0.
    """
    counts = [0] * len(seconds)
    done_s = [(each_s, rank) for rank, each_s in enumerate(seconds)]
    heapq.heapify(done_s)
    for _ in range(total):
        end_s, rank = done_s[0]
        counts[rank] += 1
        heapq.heapreplace(done_s, (end_s + seconds[rank], rank))
    return counts


class SharesBySpeed:
    """The sequences of each round for each rank, by the time that each has taken for one.

    They stand in `sync.words`; the table of `sync.py` says where.
    """

    def __init__(self, words: Words, workers: int, each: int) -> None:
        """Use the words of so many workers, whose tickets have `each` sequences."""
        self._words, self._workers, self._each = words, workers, each
        self._line = 2 + 2 * workers

    def counts(self) -> list[int]:
        """How many of a round each rank gets; as many until all have been measured."""
        ranks = range(self._workers)
        seconds = [self._words.load_float(3 + 2 * rank, 1) for rank in ranks]
        if not all(seconds):
            return [self._each] * self._workers
        return sequences(self._each * self._workers, seconds)

    def publish(self) -> None:
        """Say how many of the next round each rank gets."""
        for rank, count in enumerate(self.counts()):
            self._words.store(self._line, rank, count)

    def parts(self, rank: int, first: int, n: int) -> tuple[Part, ...]:
        """A rank's sequences of the round that begins with ticket `first`, of `n` in an epoch."""
        each = self._each
        begin = sum(self._words.load(self._line, other) for other in range(rank))
        end = begin + self._words.load(self._line, rank)
        return tuple(
            Part(
                *divmod(first + k, n), begin=max(0, begin - k * each), end=min(each, end - k * each)
            )
            for k in range(begin // each, -(-end // each))
            if begin < end
        )

    def note(self, rank: int, samples: int, took_ns: int) -> None:
        """Take the time of a rank's gradient into the mean of its earlier ones."""
        words, line = self._words, 3 + 2 * rank
        mean_s, gradients = words.load_float(line, 1), words.load(line, 2)
        if samples == 0:
            words.store_float(line, 1, mean_s * FORGETTING)
            return
        took_s = took_ns / 1e9 / samples
        if gradients:
            took_s = min(took_s, OUTLIER * mean_s)
        weight = max(MEMORY, 1 / (gradients + 1))
        words.store_float(line, 1, mean_s + weight * (took_s - mean_s))
        words.store(line, 2, gradients + 1)


def cost(slot: Slot, optimizer: Optimizer) -> float:
    """What the mean and the step of a parameter cost, in numbers that AdamW moves.

    A matrix that Muon orthogonalises costs the products of `muon.polar_reference` besides, with one
    triangle of each symmetric one; one that SOAP moves, about four products with each of its sides.
    """
    if not (isinstance(optimizer, Muon | Soap) and slot.name in optimizer.hidden):
        return slot.size
    shorter, longer = sorted(slot.shape)
    if isinstance(optimizer, Soap):
        operations = 8 * slot.size * (shorter + longer)
    else:
        symmetric = 4 * len(ORTHOGONALIZATIONS[optimizer.orthogonalization]) - 3
        operations = 3 * shorter**2 * longer + symmetric * shorter**3
    return slot.size + operations / OPERATIONS_PER_NUMBER


def parameters(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Indices of the parameters for each worker, ascending: the most costly first, greedily.

    Everybody has a part where there are as many parameters as workers. Source: Graham 1969, Bounds
    on multiprocessing timing anomalies: at most 4/3 of the best division's largest part.
    """
    loads = [0.0] * workers
    shares: list[list[int]] = [[] for _ in range(workers)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        shares[rank].append(index)
    return [sorted(share) for share in shares]
