"""Confidence limits and tests of `analyze`, `compare` and the studies, by scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def student_p(t: float, pairs: int) -> float:
    """Two-sided p-value of Student's t of the mean of some differences."""
    from scipy.special import stdtr  # .1 s

    return 2 * float(stdtr(pairs - 1, -abs(t)))


def student_limit(level: float, pairs: int) -> float:
    """The t that has this two-sided p-value."""
    from scipy.special import stdtrit

    return -float(stdtrit(pairs - 1, level / 2))


def standard_error(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Standard error of the mean of two values or more."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def binomial_low(successes: int, trials: int, risk: float) -> float:
    """Lower confidence limit of a probability: exceeds it in at most `risk` of all samples.

    Source: Clopper and Pearson 1934, Biometrika 26.
    """
    from scipy.special import betaincinv

    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, risk))


def binomial_high(successes: int, trials: int, risk: float) -> float:
    """Upper confidence limit of a probability: below it in at most `risk` of all samples."""
    return 1.0 - binomial_low(trials - successes, trials, risk)


def pairs_low(share: float, samples: int, risk: float) -> float:
    """Lower confidence limit of P(two independent draws relate) from all pairs of a sample.

    The share U of related pairs among S draws is an average of shares of floor(S/2) disjoint, hence
    independent, pairs (one per order of the sample), so E f(U) <= E f(B / k) for every convex f,
    where B is binomial(k, p) and k = floor(S/2). With f(x) = max(x - s, 0) and Markov's inequality,

        P(U >= u) <= min over s < u of E max(B/k - s, 0) / (u - s),

    and the limit is the smallest p for which this reaches `risk`: never wider than Hoeffding's.

    Args:
        share: U, in [0, 1].
        samples: S >= 2.
        risk: largest probability that the limit exceeds p.

    Source: Hoeffding 1963, J. Am. Stat. Assoc. 58, section 5b, for the average over orders.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    pairs = samples // 2
    if share <= 0:
        return 0.0
    at = share * pairs
    s = np.arange(int(np.ceil(at)))  # whole s suffice: between them the bound is monotone

    def excess(p: float) -> float:
        tail = binom.sf(np.arange(pairs), pairs, p)  # P(B > j)
        above = np.cumsum(tail[::-1])[::-1][: len(s)]  # E max(B - s, 0): sum over j >= s
        return float(min(1.0, (above / (at - s)).min())) - risk

    return float(brentq(excess, 0.0, share, xtol=1e-12, rtol=1e-12))


def pairs_high(share: float, samples: int, risk: float) -> float:
    """Upper confidence limit of P(two independent draws relate), `pairs_low` of the opposite."""
    return 1.0 - pairs_low(1.0 - share, samples, risk)
