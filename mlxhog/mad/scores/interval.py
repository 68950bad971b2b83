"""How far a mean over a few seeds may be from the mean over all of them: Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """Return h such that mean(values) +- h is the t-interval of the mean, or None below 2 values.

    Args:
        values: n independent numbers, taken as normal.
        confidence: share of such intervals that hold the mean of the distribution, in (0, 1).
    """
    n = len(values)
    if n < 2:
        return None
    return t_quantile(0.5 + confidence / 2, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)


def t_quantile(share: float, df: int) -> float:
    """Return the number below which `share` in [0.5, 1) of Student's t lies, to 12 digits.

    Args:
        share: probability.
        df: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < 2 * share - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _within(angle: float, df: int) -> float:
    """Probability of |t| < sqrt(df) tan(angle): Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    cos, sin = math.cos(angle), math.sin(angle)
    odd = df % 2
    term, total = (cos, cos) if odd and df > 1 else (1.0, 1.0 - odd)
    for k in range(2 + odd, df - 1, 2):
        term *= (k - 1) / k * cos * cos
        total += term
    return (angle + sin * total) * 2 / math.pi if odd else sin * total
