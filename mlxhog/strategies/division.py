"""How workers of a synchronous round divide its work: sequences by speed, parameters by cost."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from mlxhog.arena.layout import Slot
from mlxhog.optim import Muon, Optimizer
from mlxhog.optim.muon import ORTHOGONALIZATIONS
from mlxhog.optim.soap import Soap

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
