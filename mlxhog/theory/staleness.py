"""How late updates were: mean, median, 99th percentile and largest staleness per worker.

Staleness is the number of updates by others between a worker's read and its write. With P workers
that always have a gradient in flight its mean over all updates is P - 1, whatever their speeds:
each update falls into the flight of the P - 1 others. Its largest value has no such limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """The distribution of one worker's staleness, or of a whole run's, in updates.

    Attributes:
        name: of the worker.
        steps: updates it is made of.
        mean: average.
        p50: median.
        p99: 99th percentile.
        max: largest.
    """

    name: str
    steps: int
    mean: float
    p50: float
    p99: float
    max: int


def of_counts(name: str, counts: ArrayLike) -> Staleness:
    """Summarise counts: `counts[t]` updates had a staleness of t."""
    counts = np.asarray(counts, np.int64)
    steps = int(counts.sum())
    if steps == 0:
        return Staleness(name=name, steps=0, mean=0.0, p50=0.0, p99=0.0, max=0)
    ends = np.cumsum(counts)
    return Staleness(
        name=name,
        steps=steps,
        mean=float(counts @ np.arange(len(counts)) / steps),
        p50=float(np.searchsorted(ends, 0.5 * steps)),
        p99=float(np.searchsorted(ends, 0.99 * steps)),
        max=int(np.flatnonzero(counts)[-1]),
    )


def of_values(name: str, values: Iterable[int]) -> Staleness:
    """Summarise the staleness of single updates."""
    return of_counts(name, np.bincount(np.fromiter(values, np.int64), minlength=1))
