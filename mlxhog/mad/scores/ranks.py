"""How alike two orders of the same things are: Spearman's and Kendall's rank correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the rank of every value from 1, smallest first; equal values share their mean rank."""
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    found: NDArray[np.float64] = (last - (count - 1) / 2)[place]
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rho in [-1, 1]: the linear correlation of the ranks.

    NaN where it is undefined: fewer than two values, or all of one side equal.

    Args:
        a: values of n things.
        b: other values of the same things in the same order.
    """
    first, second = (ranks(values) - (len(values) + 1) / 2 for values in (a, b))
    spread = math.sqrt((first @ first) * (second @ second))
    return float(first @ second) / spread if spread else math.nan


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Kendall's tau-b in [-1, 1]: pairs in the same order less the others, ties taken out.

    NaN where it is undefined, as in `spearman`.

    Args:
        a: values of n things.
        b: other values of the same things in the same order.
    """
    first, second = (
        np.sign(np.subtract.outer(values, values)).ravel() for values in map(np.asarray, (a, b))
    )
    untied = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / untied if untied else math.nan
