"""Rank correlations of two lists of values, with intervals by the bootstrap over their members."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DRAWS = 4000


def spearman(a, b):
    """Spearman's rho in [-1, 1]; NaN for fewer than two pairs, or if one side is all equal."""
    from scipy.stats import rankdata

    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    spread = math.sqrt((first @ first) * (second @ second))
    return float(first @ second) / spread if spread else math.nan


def kendall(a, b):
    """Kendall's tau-b in [-1, 1]; NaN if all values of one side are equal."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation, and its 95 % percentile interval; NaN where it is not defined."""

    rho: float
    low: float
    high: float

    @classmethod
    def of(cls, a, b, correlation=spearman, *, draws=DRAWS):
        """Compare two lists of values of the same members; the draws follow from their number."""
        pairs, rng = np.array([a, b]), np.random.default_rng(0)
        drawn = (pairs[:, rng.integers(0, len(a), len(a))] for _ in range(draws))
        values = [correlation(*draw) for draw in drawn if np.ptp(draw, axis=1).all()]
        low, high = np.percentile(values, [2.5, 97.5]) if values else (math.nan, math.nan)
        return cls(correlation(a, b), float(low), float(high))
