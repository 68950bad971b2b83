"""Parallel steps with the result of serial ones, bit for bit (Pan et al. 2016, arXiv:1605.09721).

Each batch is the next B examples of the order. Examples conflict if they share a coordinate; those
that conflicts connect form a component, which one worker processes in order. Components share no
coordinate, so workers need no lock, and read what one worker would have read. There is a barrier
between batches. The predicted speed-up, B over the longest share, excludes it and the search.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.process import monotonic_ns
from mlxhog.display.views import Tell
from mlxhog.research.classic.problem import Int32, Int64

BATCHES = (64, 256, 1024, 4096, 16384)  # batch sizes to try if `--component-batch` is not given
GAIN = 1.02
"""Predicted speed-up of a smaller batch over a larger one below which the larger one is chosen:
smaller batches mean more waiting."""


class RoundTotals(NamedTuple):
    """A round of workers, from the first worker's begin to the last one's end."""

    seconds: float
    native_s: float  # inside the native loops, summed over workers
    examples: int  # that were done


Round = Callable[[Sequence[tuple[int, int]], float], RoundTotals]
"""Has parts of the order, (start, count) of each worker, done at a learning rate."""


def components(supports: tuple[Int64, Int32, int], examples: Int32) -> Int32:
    """Number the components of some examples, (k,) int32; equal numbers are one component.

    An example may occur twice in `examples`, (k,) int32, and then conflicts with itself.
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
    """Assign whole components to workers with about equal loads; returns each worker's places.

    Places are ascending indices into `labels`. The largest load is at most 4/3 of the optimum.
    Source: Graham 1969.
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
class ComponentSummary:
    """Statistics of the components of some batches."""

    examples: int = 0  # examples in the batches
    longest: int = 0  # examples of the longest share, summed over batches
    largest: int = 0  # examples of the largest component

    def add(self, labels: Int32, shares: list[NDArray[np.intp]]) -> None:
        """Count a batch."""
        self.examples += len(labels)
        self.longest += max(len(share) for share in shares)
        self.largest = max(self.largest, int(np.bincount(labels).max()))

    @property
    def speedup(self) -> float:
        """Predicted upper bound on the speed-up over one worker."""
        return self.examples / self.longest if self.longest else 1.0

    def text(self, batch: int, workers: int) -> str:
        """Describe the components in one line."""
        text = f"cyclades: the largest component of a batch of {batch} examples has {self.largest}"
        if self.speedup < GAIN:
            return f"{text}: one worker does nearly all work; use hogwild for such data"
        return f"{text}; {workers} workers are up to {self.speedup:.2f} times as fast as one"


@dataclass
class ConflictFree:
    """Runs the epochs of one run, batch by batch."""

    supports: tuple[Int64, Int32, int]  # the problem's hypergraph
    workers: int  # that share each batch
    batch: int | None  # examples per conflict search; None tries several sizes in the first epoch
    tell: Tell  # gets a description of the components after the first epoch
    _described: bool = field(default=False, init=False)

    def epoch(self, order: Int32, do: Round, gamma: float) -> RoundTotals:
        """Have all examples of the order done; the order is rearranged within each batch."""
        began_ns = monotonic_ns()
        batch = self._choose_batch(order)
        rounds, searched_s, summary = list[RoundTotals](), 0.0, ComponentSummary()
        for start in range(0, len(order), batch):
            examples = order[start : start + batch].copy()
            labels = components(self.supports, examples)
            shares = divide(labels, self.workers)
            summary.add(labels, shares)
            at, parts = start, []
            for places in shares:
                order[at : at + len(places)] = examples[places]
                parts.append((at, len(places)))
                at += len(places)
            searched_s += (monotonic_ns() - began_ns) / 1e9  # the search is part of the epoch
            rounds.append(do(parts, gamma))
            began_ns = monotonic_ns()
        if not self._described:
            self.tell(summary.text(batch, self.workers))
            self._described = True
        seconds, native_s, done = map(sum, zip(*rounds, strict=True))
        return RoundTotals(searched_s + seconds, native_s, int(done))

    def _choose_batch(self, order: Int32) -> int:
        """The largest batch size with nearly the best predicted speed-up for the first examples."""
        if self.batch is not None:
            return self.batch
        best, speedup = BATCHES[0], 0.0
        for batch in BATCHES:
            summary, examples = ComponentSummary(), order[:batch]
            labels = components(self.supports, examples)
            summary.add(labels, divide(labels, self.workers))
            if summary.speedup * GAIN >= speedup:
                best, speedup = batch, max(speedup, summary.speedup)
            if batch >= len(order):
                break
        self.batch = min(best, len(order))
        return self.batch
