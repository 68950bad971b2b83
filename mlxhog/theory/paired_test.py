"""A sequential test of paired differences: which of two is better, or that it cannot be told.

Pairs come one after the other, and after each of them (from the third on) the mean difference over
its standard error, Student's t, is compared with a boundary. The first crossing decides, and ends
the comparison. Up to then, and at the planned end without one, nothing can be told.

The boundary is t's quantile at the level `c_N (k / N)^5` for pair k of N: little of the error is
spent early, so that the last look is nearly as sharp as a test with a single one. `c_N` stands in
`LEVELS`. It is the quantile of min over k of p_k / (k / N)^5, less two standard errors, among two
million sequences of differences that mean nothing; p_k is the two-sided p-value of the t after k
pairs (`python benchmarks/compare_power.py --table` makes the table again).

What is promised holds exactly if differences are independent and normal with one unknown variance,
whatever that is: either side is called better with a probability of at most `ERROR` where both are
equal, over all looks together. For symmetric differences with longer tails it is less
(Benjamini 1983, Is the t test really conservative when the parent distribution is long-tailed?).
The interval is the repeated one of Jennison and Turnbull 1989: it holds at all looks at once, with
probability 1 - `ERROR`, so that stopping by it does not spoil it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

ERROR = 0.01
FEWEST = 3
"""Pairs before the first look: two say next to nothing of their own spread."""

SHAPE = 5.0
LEVELS: dict[int, float] = {
    2: 0.009930,
    3: 0.009844,
    4: 0.008374,
    5: 0.007721,
    6: 0.007424,
    7: 0.007236,
    8: 0.007092,
    9: 0.006908,
    10: 0.006792,
    11: 0.006738,
    12: 0.006652,
    13: 0.006580,
    14: 0.006517,
    15: 0.006468,
    16: 0.006374,
    17: 0.006334,
    18: 0.006280,
    19: 0.006261,
    20: 0.006250,
}
"""By the planned number of pairs: the level of the last look."""

MOST = max(LEVELS, default=0)


@dataclass(frozen=True)
class Outcome:
    """What some differences say.

    Attributes:
        pairs: that it was told from.
        planned: pairs at which it would have ended at the latest.
        mean: of the differences.
        low: lower end of the interval; minus infinity before the first look.
        high: its upper end.
    """

    pairs: int
    planned: int
    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the mean is told from zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def ended(self) -> bool:
        """Whether no further pair is wanted."""
        return self.sign != 0 or self.pairs >= self.planned


def judge(differences: Sequence[float], planned: int) -> Outcome:
    """Look after each pair, and stop where a boundary is crossed; what comes later is ignored.

    Args:
        differences: of the pairs so far, in the order in which they were run.
        planned: the number of pairs, 2 to `MOST`, fixed before the first.
    """
    outcome = Outcome(0, planned, 0.0, -math.inf, math.inf)
    for k in range(1, min(len(differences), planned) + 1):
        outcome = look(differences[:k], planned)
        if outcome.ended:
            break
    return outcome


def boundary(pairs: int, planned: int) -> float:
    """The t that decides after so many pairs; infinite where there is no look."""
    if pairs < min(FEWEST, planned):
        return math.inf
    from scipy.stats import t  # .3 s

    level = LEVELS[planned] * (pairs / planned) ** SHAPE
    return float(t.isf(level / 2, pairs - 1))


def look(differences: Sequence[float], planned: int) -> Outcome:
    """What all of some differences say, with the interval that a look after them has."""
    k = len(differences)
    mean, limit = fmean(differences), boundary(k, planned)
    if math.isinf(limit):
        return Outcome(k, planned, mean, -math.inf, math.inf)
    half = limit * stdev(differences) / math.sqrt(k)
    return Outcome(k, planned, mean, mean - half, mean + half)
