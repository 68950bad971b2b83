"""What repeated measurements show: a number, its 95 % interval, how many there were, and a p-value.

| what was repeated | estimate |
|---|---|
| a number, or the difference of two arms with one seed each | `Mean.of(values)` |
| the ratio of two arms, measured in pairs | `Ratio.of(dividends, divisors)` |
| a yes or no | `Share.of(events, trials)` |
| two scores of each member of a list | `Rank.of(scores, others)` |

`p(limit)` is the two-sided p-value of the hypothesis that the true value is the limit. The interval
excludes exactly the limits whose p-value is below `ERROR`. `holm` corrects the p-values of one
script, so that it has any false verdict with a probability of at most `ERROR`.

A comparison that may end early after any pair is another test: `mlxhog.experiments.paired_test`.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

ERROR = 0.05
"""Probability of a false verdict: of one comparison, and of a script after `holm`."""

DRAWS = 4000
"""Of a bootstrap."""

MIN_PAIRS, MAX_PAIRS = 5, 1000
"""Of a comparison that is planned to get a verdict."""

ROUNDING = 1e-12
"""Relative difference up to which two values are equal."""


@dataclass(frozen=True)
class Estimate:
    """A number that repeated measurements estimate; its interval is NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    p: Callable[[float], float] = field(default=lambda limit: math.nan, repr=False, compare=False)

    def spelt(self, form=".2f"):
        """The value and, in brackets, its interval and n."""
        within = f"{self.low:{form}} to {self.high:{form}}, n {self.n}"
        unknown = math.isnan(self.low) or math.isnan(self.high)
        return f"{self.value:{form}} ({f'n {self.n}, no interval' if unknown else within})"

    __str__ = spelt

    def to_json(self):
        """As it stands in a result."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


class Mean(Estimate):
    """A mean, by Student's t.

    Fewer than two values have no interval, nor have values that are all equal: repeats that cannot
    differ, such as orders of one data set, say nothing of what another data set would give.
    """

    @classmethod
    def of(cls, values):
        """Of independent values, taken as normal; NaN if a run diverged or did not arrive."""
        values = list(map(float, values))
        known = values and all(map(math.isfinite, values))
        if not known or max(values) - min(values) <= ROUNDING * max(map(abs, values)):
            return cls(statistics.fmean(values) if known else math.nan, n=len(values))
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(1 - ERROR)
        return cls(
            statistics.fmean(values), float(interval.low), float(interval.high), len(values),
            lambda limit: float(stats.ttest_1samp(values, limit).pvalue),
        )  # fmt: skip

    @classmethod
    def of_differences(cls, own, others):
        """Of `own - other` in pairs, in the order of their seeds."""
        return cls.of(a - b for a, b in zip(own, others, strict=True))


class Ratio(Estimate):
    """How many times larger one arm is than another: the geometric mean over pairs."""

    @classmethod
    def of(cls, dividends, divisors):
        """Of pairs in the order of their seeds or turns, so that a slow spell hits both sides.

        One value that is infinite or not above 0 (a goal that was not reached) leaves no ratio.
        """
        pairs = list(zip(dividends, divisors, strict=True))
        if not all(0 < x < math.inf and 0 < y < math.inf for x, y in pairs):
            return cls(math.nan, n=len(pairs))
        log = Mean.of(math.log(x) - math.log(y) for x, y in pairs)
        ends = map(math.exp, (log.value, log.low, log.high))
        return cls(*ends, log.n, lambda limit: log.p(math.log(limit)))


class Share(Estimate):
    """How often something happens among independent trials (Clopper and Pearson 1934)."""

    @classmethod
    def of(cls, events, trials):
        """Events among trials, of which there may be none."""
        if not trials:
            return cls(math.nan)
        interval = stats.binomtest(events, trials).proportion_ci(1 - ERROR)

        def p(limit):
            tails = (
                stats.binom.cdf(events, trials, limit),
                stats.binom.sf(events - 1, trials, limit),
            )
            return min(1.0, 2 * float(min(tails)))

        return cls(events / trials, float(interval.low), float(interval.high), trials, p)


class Rank(Estimate):
    """How alike two lists rank their members: Spearman's rho, by a bootstrap over the members."""

    @classmethod
    def of(cls, a, b):
        """Of two lists in the order of their members."""
        pairs, rng = np.array([a, b]), np.random.default_rng(0)
        drawn = (pairs[:, rng.integers(0, len(a), len(a))] for _ in range(DRAWS))
        values = [stats.spearmanr(*draw).statistic for draw in drawn if np.ptp(draw, axis=1).all()]
        low, high = np.percentile(values, [2.5, 97.5]) if values else (math.nan, math.nan)

        def p(limit):
            shares = np.mean(np.less_equal(values, limit)), np.mean(np.greater_equal(values, limit))
            return min(1.0, 2 * float(min(shares))) if values else math.nan

        rho = float(stats.spearmanr(a, b).statistic)
        return cls(rho, float(low), float(high), len(a), p)


def pairs_needed(distance, deviation, *, comparisons=1):
    """Pairs whose interval reaches at most half the way from the recorded value to a limit.

    Where the true value is the recorded one, these pairs decide in about 97 of 100 measurements.

    Args:
        distance: between the recorded value and the limit; of ratios, of their logarithms.
        deviation: standard deviation of a pair, likewise.
        comparisons: that are planned; as `holm` corrects their p-values, the interval is wider.

    Returns:
        From `MIN_PAIRS` to `MAX_PAIRS`; None where no number of them is enough.
    """
    n = np.arange(MIN_PAIRS, MAX_PAIRS + 1)
    reach = stats.t.ppf(1 - ERROR / comparisons / 2, n - 1) * deviation / np.sqrt(n)
    return next(map(int, n[reach <= distance / 2]), None)


def holm(p_values):
    """Correct the p-values of one script for their number, in their order (Holm 1979).

    NaN (no interval) stays NaN and counts as no comparison.
    """
    known = sorted((p, k) for k, p in enumerate(p_values) if not math.isnan(p))
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, (p, k) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[k] = least
    return corrected
