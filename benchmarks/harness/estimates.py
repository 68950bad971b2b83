"""What repeated measurements show: a number, its 95 % interval, how many there were, and a p-value.

| what was repeated | estimate |
|---|---|
| a number, or the difference of two arms with one seed each | `Mean.of(values)` |
| the ratio of two arms, measured in pairs | `Ratio.of(dividends, divisors)` |
| a yes or no | `Share(events, trials)` |

All three have `value`, `low`, `high`, `n`, and `p(limit)`, the two-sided p-value of the hypothesis
that the true value is the limit. The interval excludes exactly the limits whose p-value is below
`ERROR`. `holm` corrects the p-values of one page, so that the page has any false verdict with a
probability of at most `ERROR`.

A comparison that may end early after any pair is another test: `mlxhog.theory.paired_test`.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass

ERROR = 0.05
"""Probability of a false verdict: of one comparison, and of a page after `holm`."""


class Estimate(ABC):
    """A number that repeated measurements estimate."""

    n: int
    """How many measurements, or pairs of them, it rests on."""

    @property
    @abstractmethod
    def value(self):
        """The estimate."""

    @property
    @abstractmethod
    def low(self):
        """Lower end of the 95 % interval; NaN where the repeats are too few for one."""

    @property
    @abstractmethod
    def high(self):
        """Its upper end."""

    @abstractmethod
    def p(self, limit):
        """Two-sided p-value of the true value being `limit`; NaN without an interval."""

    def spelt(self, form=".2f"):
        """The value and, in brackets, its interval and n."""
        within = f"{self.low:{form}} to {self.high:{form}}, n {self.n}"
        unknown = math.isnan(self.low) or math.isnan(self.high)
        return f"{self.value:{form}} ({f'n {self.n}, no interval' if unknown else within})"

    def __str__(self):
        """Spelt with two digits."""
        return self.spelt()

    def to_json(self):
        """As it stands in a result."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class Mean(Estimate):
    """A mean and half of its 95 % interval by Student's t; NaN where it has none.

    Fewer than two values have none, nor have values that are all equal: repeats that cannot differ,
    such as orders of one data set, say nothing of what another data set would give.
    """

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values):
        """Of independent values, taken as normal."""
        values = list(values)
        n = len(values)
        if not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan, n)  # a run that diverged or did not arrive
        if len(set(values)) < 2:
            return cls(statistics.fmean(values) if values else math.nan, math.nan, n)
        half = _quantile(n) * statistics.stdev(values) / math.sqrt(n)
        return cls(statistics.fmean(values), half, n)

    @classmethod
    def of_differences(cls, own, others):
        """Of `own - other` in pairs, in the order of their seeds."""
        return cls.of(a - b for a, b in zip(own, others, strict=True))

    @property
    def value(self):
        """The mean."""
        return self.mean

    @property
    def low(self):
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self):
        """Upper end of the interval."""
        return self.mean + self.half

    def p(self, limit):
        """By Student's t."""
        from scipy.stats import t

        if math.isnan(self.half):
            return math.nan
        distance = abs(self.mean - limit)
        return 2 * float(t.sf(distance / self.half * _quantile(self.n), self.n - 1))


@dataclass(frozen=True)
class Ratio(Estimate):
    """How many times larger one arm is than another: the geometric mean over pairs.

    Attributes:
        log: mean of the logarithms of the pairs' ratios, by Student's t.
    """

    log: Mean

    @classmethod
    def of(cls, dividends, divisors):
        """Of pairs in the order of their seeds or turns, so that a slow spell hits both sides.

        One value that is infinite or not above 0 (a goal that was not reached) leaves no ratio:
        it is NaN, and nothing can be told from it.
        """
        pairs = list(zip(dividends, divisors, strict=True))
        if not all(0 < x < math.inf and 0 < y < math.inf for x, y in pairs):
            return cls(Mean(math.nan, math.nan, len(pairs)))
        return cls(Mean.of(math.log(x) - math.log(y) for x, y in pairs))

    @property
    def n(self):
        """Number of pairs."""
        return self.log.n

    @property
    def value(self):
        """The geometric mean."""
        return math.exp(self.log.mean)

    @property
    def low(self):
        """Lower end of the interval."""
        return math.exp(self.log.low)

    @property
    def high(self):
        """Upper end of the interval."""
        return math.exp(self.log.high)

    def p(self, limit=1.0):
        """By Student's t of the logarithms."""
        return self.log.p(math.log(limit))


@dataclass(frozen=True)
class Share(Estimate):
    """How often something happens: events among independent trials (Clopper and Pearson 1934)."""

    events: int
    n: int

    @property
    def value(self):
        """The share of trials with the event."""
        return self.events / self.n if self.n else math.nan

    @property
    def low(self):
        """Lower end of the interval; 0 where there is no event."""
        from scipy.stats import beta

        if not self.n:
            return math.nan
        return (
            float(beta.ppf(ERROR / 2, self.events, self.n - self.events + 1))
            if self.events
            else 0.0
        )

    @property
    def high(self):
        """Upper end of the interval; 1 where every trial has the event."""
        from scipy.stats import beta

        if not self.n:
            return math.nan
        rest = self.n - self.events
        return float(beta.ppf(1 - ERROR / 2, self.events + 1, rest)) if rest else 1.0

    def p(self, limit):
        """Twice the smaller tail of the binomial distribution, at most 1."""
        from scipy.stats import binom

        if not self.n:
            return math.nan
        tails = binom.cdf(self.events, self.n, limit), binom.sf(self.events - 1, self.n, limit)
        return min(1.0, 2 * float(min(tails)))


def _quantile(n):
    """Half of an interval by Student's t, in standard errors."""
    from scipy.stats import t  # .3 s

    return float(t.ppf(1 - ERROR / 2, n - 1))


def holm(p_values):
    """Correct the p-values of one page for their number, in their order (Holm 1979).

    A comparison with a corrected value of at most `ERROR` is a verdict; then the page has any
    false verdict with a probability of at most `ERROR`, however its comparisons depend on each
    other. NaN (no interval) stays NaN and counts as no comparison.
    """
    known = sorted((p, k) for k, p in enumerate(p_values) if not math.isnan(p))
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, (p, k) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[k] = least
    return corrected
