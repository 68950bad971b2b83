"""Confidence intervals of a probability: of independent trials, and of the pairs of a sample."""

from __future__ import annotations

import numpy as np


def binomial_low(successes: int, trials: int, risk: float) -> float:
    """Lower confidence limit of a probability: exceeds it in at most `risk` of all samples.

    Source: Clopper and Pearson 1934, Biometrika 26.
    """
    from scipy.special import betaincinv

    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, risk))


def binomial_high(successes: int, trials: int, risk: float) -> float:
    """Upper confidence limit of a probability; see `binomial_low`."""
    return 1.0 - binomial_low(trials - successes, trials, risk)


def pairs_low(share: float, samples: int, risk: float) -> float:
    """Lower confidence limit of P(two independent draws relate) from all pairs of a sample.

    The share U of related pairs among S draws is an average of shares of floor(S/2) disjoint, hence
    independent, pairs (one per order of the sample), so E f(U) <= E f(B / k) for every convex f,
    where B is binomial(k, p) and k = floor(S/2). With f(x) = max(x - s, 0) and Markov's inequality,

        P(U >= u) <= min over s < u of E max(B/k - s, 0) / (u - s),

    and the limit is the smallest p for which this reaches `risk`. No choice of f in Hoeffding's
    exponential family gives less, so this is never wider than his bound.

    Args:
        share: U, in [0, 1].
        samples: S >= 2.
        risk: how often the limit may exceed p.

    Source: Hoeffding 1963, J. Am. Stat. Assoc. 58, section 5b, for the average over orders.
    """
    from scipy.optimize import brentq

    pairs = samples // 2
    if share <= 0:
        return 0.0

    def excess(p: float) -> float:
        return _tail_bound(share * pairs, pairs, p) - risk

    return float(brentq(excess, 0.0, share, xtol=1e-12, rtol=1e-12))


def pairs_high(share: float, samples: int, risk: float) -> float:
    """Upper confidence limit of P(two independent draws relate); see `pairs_low`."""
    return 1.0 - pairs_low(1.0 - share, samples, risk)


def _tail_bound(at: float, trials: int, p: float) -> float:
    """The bound on P(U >= at / trials); between whole s the quotient is monotone, so they do."""
    from scipy.stats import binom

    s = np.arange(int(np.ceil(at)))
    tail = binom.sf(np.arange(trials), trials, p)  # P(B > j)
    excess = np.cumsum(tail[::-1])[::-1][: len(s)]  # E max(B - s, 0) = sum over j >= s of P(B > j)
    return float(min(1.0, (excess / (at - s)).min()))
