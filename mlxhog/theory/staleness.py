"""How late updates were: mean, median, 99th percentile and largest staleness per worker.

Staleness is the number of updates by others between a worker's read and its write. With P workers
that always have a gradient in flight its mean over all updates is P - 1, whatever their speeds:
each update falls into the flight of the P - 1 others. Its largest value has no such limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


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
    p50: int
    p99: int
    max: int


def of_histogram(name: str, histogram: Mapping[int, int]) -> Staleness:
    """Summarise a histogram: how many updates had which staleness."""
    steps = sum(histogram.values())
    if steps == 0:
        return Staleness(name=name, steps=0, mean=0.0, p50=0, p99=0, max=0)
    values = sorted(histogram)
    ends = np.cumsum([histogram[value] for value in values])
    return Staleness(
        name=name,
        steps=steps,
        mean=sum(value * count for value, count in histogram.items()) / steps,
        p50=values[int(np.searchsorted(ends * 100, steps * 50))],
        p99=values[int(np.searchsorted(ends * 100, steps * 99))],
        max=values[-1],
    )


def of_values(name: str, values: Iterable[int]) -> Staleness:
    """Summarise the staleness of single updates."""
    return of_histogram(name, Counter(values))
