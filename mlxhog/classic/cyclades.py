"""Parallel steps with the result of serial ones, bit for bit (Pan et al. 2016, arXiv:1605.09721).

The next B examples of the order are taken together. Two of them conflict where a coordinate belongs
to both; what is connected by conflicts, a component, goes whole to one worker, which takes its
examples in their order. Components have no coordinate in common, so workers never meet, need no
lock, and everybody reads just what it would read if one worker took all examples in order. Between
two batches all wait.

Components go to the worker with the least to do, the largest first. The longest share decides:
B over its length is the predicted speed-up, before waiting and the search for components. Where
every example has a coordinate in common with every other, as dense ones have, there is one
component, and one worker takes all of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.process import monotonic_ns
from mlxhog.classic.dispatcher import Dispatcher, RoundTotals
from mlxhog.classic.problem import Int32, Int64
from mlxhog.classic.worker import Share

BATCHES = (64, 256, 1024, 4096, 16384)
"""What is tried where nobody says how large a batch is."""
GAIN = 1.02
"""Times as fast that a smaller batch has to be predicted: it also means more waiting."""


def components(supports: tuple[Int64, Int32, int], examples: Int32) -> Int32:
    """Number the components of some examples, (k,) int32; equal numbers conflict, if indirectly.

    Args:
        supports: as `Problem.supports` gives them.
        examples: (k,) int32; one may stand there twice, and conflicts with itself.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    indptr, indices, _ = supports
    lengths = indptr[examples + 1] - indptr[examples]
    owner = np.repeat(np.arange(len(examples)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    touched = indices[np.repeat(indptr[examples], lengths) + within]
    _, vertex = np.unique(touched, return_inverse=True)
    n = len(examples) + (int(vertex.max()) + 1 if len(vertex) else 0)
    edges = coo_array((np.ones(len(owner), np.int8), (owner, len(examples) + vertex)), (n, n))
    _, labels = connected_components(edges, directed=False)
    components: Int32 = labels[: len(examples)].astype(np.int32)
    return components


def divide(labels: Int32, workers: int) -> list[NDArray[np.intp]]:
    """Places of a batch for each worker, ascending: whole components, the loads about equal.

    Source: Graham 1969: at most 4/3 of the best division's largest part.
    """
    _, component, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    loads = [(0, rank) for rank in range(workers)]
    owner = np.empty(len(sizes), np.intp)
    for one in np.argsort(-sizes, kind="stable"):
        load, rank = loads[0]
        owner[one] = rank
        heapq.heapreplace(loads, (load + int(sizes[one]), rank))
    return [np.flatnonzero(owner[component] == rank) for rank in range(workers)]


@dataclass
class Summary:
    """The components of some batches.

    Attributes:
        examples: in them.
        longest: examples of the longest share, summed over batches.
        sizes: examples of a component -> how many there are.
    """

    examples: int = 0
    longest: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def add(self, labels: Int32, shares: list[NDArray[np.intp]]) -> None:
        """Count a batch."""
        self.examples += len(labels)
        self.longest += max(len(share) for share in shares)
        each = np.unique(labels, return_counts=True)[1]
        for size, count in zip(*np.unique(each, return_counts=True), strict=True):
            self.sizes[int(size)] = self.sizes.get(int(size), 0) + int(count)

    @property
    def speedup(self) -> float:
        """Predicted: how many times as fast as one worker, at most."""
        return self.examples / self.longest if self.longest else 1.0

    def text(self, batch: int, workers: int) -> str:
        """Say what the components are like."""
        largest = max(self.sizes)
        if self.speedup < GAIN:
            return (
                f"cyclades: of {batch} examples together, the largest component has {largest}: one "
                "worker does nearly all, at the speed of serial; for such data take hogwild"
            )
        low = {size: self.sizes[size] for size in sorted(self.sizes)[:3]}
        rest = sum(self.sizes.values()) - sum(low.values())
        parts = [f"{count} of {size}" for size, count in low.items()]
        parts += [f"{rest} larger ones up to {largest}"] if rest else []
        return (
            f"cyclades: components in batches of {batch}, by examples: {', '.join(parts)}; "
            f"{workers} workers are up to {self.speedup:.2f} times as fast as one"
        )


class ConflictFree:
    """Epochs of one run, batch by batch."""

    def __init__(
        self,
        supports: tuple[Int64, Int32, int],
        workers: int,
        batch: int | None,
        tell: Callable[[str], None],
    ) -> None:
        """Prepare a run.

        Args:
            supports: of the problem.
            workers: that share each batch.
            batch: examples looked at together; None tries some in the first epoch.
            tell: shown what the components are like.
        """
        self._supports, self._workers = supports, workers
        self._batch, self._tell, self._told = batch, tell, False

    def epoch(self, order: Int32, dispatcher: Dispatcher, share: Share) -> RoundTotals:
        """Have all examples of the order done, which is rearranged batch by batch.

        Args:
            order: (n,) int32, the shared one.
            dispatcher: of the workers.
            share: what their shares have in common.
        """
        began_ns = monotonic_ns()
        batch = self._chosen(order)
        totals, summary = RoundTotals(), Summary()
        for start in range(0, len(order), batch):
            examples = order[start : start + batch].copy()
            labels = components(self._supports, examples)
            shares = divide(labels, self._workers)
            summary.add(labels, shares)
            at, parts = start, []
            for places in shares:
                order[at : at + len(places)] = examples[places]
                parts.append((at, len(places)))
                at += len(places)
            totals.seconds += (monotonic_ns() - began_ns) / 1e9  # the search is part of the epoch
            totals.add(dispatcher.do_parts(parts, share))
            began_ns = monotonic_ns()
        if not self._told:
            self._tell(summary.text(batch, self._workers))
            self._told = True
        return totals

    def _chosen(self, order: Int32) -> int:
        """The batch: the largest one that is nearly as fast as any, of the order's beginning."""
        if self._batch is not None:
            return self._batch
        best, speedup = BATCHES[0], 0.0
        for batch in BATCHES:
            summary, examples = Summary(), order[:batch]
            labels = components(self._supports, examples)
            summary.add(labels, divide(labels, self._workers))
            if summary.speedup * GAIN >= speedup:
                best, speedup = batch, max(speedup, summary.speedup)
            if batch >= len(order):
                break
        self._batch = min(best, len(order))
        return self._batch
