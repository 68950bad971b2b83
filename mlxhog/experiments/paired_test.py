"""Tests of paired differences: which of two is better, or no decision.

`single_look` is the t-test of a fixed number of pairs; the rest of this file is sequential. After
each pair, from the third on, Student's t of the differences is compared with a boundary. The first
crossing decides; without one up to the planned number of pairs there is no decision.

The boundary is t's quantile at the level `c_N (k / N)^5` for pair k of N, which spends little of
the error early, so that the last look is nearly as sharp as a single one. `c_N`, in `LEVELS`, is
the quantile of min over k of p_k / (k / N)^5, less two standard errors, among two million sequences
of differences with mean 0 (`python benchmarks/compare_power.py --table`).

If both sides are equal, the test calls one of them better with a probability of at most `ERROR`,
over all looks together: exactly for independent normal differences of one unknown variance, less
for longer symmetric tails (Benjamini 1983, Is the t test really conservative when the parent
distribution is long-tailed?). The interval is the repeated one of Jennison and Turnbull 1989, which
holds at all looks at once, so it stays valid if the comparison stops by it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

ERROR = 0.01
MIN_PAIRS = 3  # pairs before the first look: two show next to nothing of their variance
SHAPE = 5.0
LEVELS = dict(enumerate((
    0.009930, 0.009844, 0.008374, 0.007721, 0.007424, 0.007236, 0.007092, 0.006908, 0.006792,
    0.006738, 0.006652, 0.006580, 0.006517, 0.006468, 0.006374, 0.006334, 0.006280, 0.006261,
    0.006250,
), start=2))  # fmt: skip
"""By the planned number of pairs: the level of the last look."""


@dataclass(frozen=True)
class PairedResult:
    """The mean of some differences, with its interval."""

    pairs: int  # number of differences
    planned: int  # most pairs of the comparison
    mean: float  # of the differences
    low: float  # lower end of the interval; minus infinity before the first look
    high: float  # its upper end

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def ended(self) -> bool:
        """Whether the comparison ends here."""
        return self.sign != 0 or self.pairs >= self.planned


def decide(differences: Sequence[float], planned: int) -> PairedResult:
    """Look after each pair, and stop at the first crossing of the boundary; ignore later pairs.

    Differences are in the order in which the pairs were run; `planned` is fixed before the first.
    """
    outcome = PairedResult(0, planned, 0.0, -math.inf, math.inf)
    for k in range(1, min(len(differences), planned) + 1):
        outcome = look(differences[:k], planned)
        if outcome.ended:
            break
    return outcome


def student_limit(level: float, pairs: int) -> float:
    """Return the t of the mean of some differences that has this two-sided p-value."""
    from scipy.special import stdtrit  # .1 s

    return -float(stdtrit(pairs - 1, level / 2))


def boundary(pairs: int, planned: int) -> float:
    """Return the t that decides after some pairs; infinite before the first look."""
    if pairs < min(MIN_PAIRS, planned):
        return math.inf
    return student_limit(LEVELS[planned] * (pairs / planned) ** SHAPE, pairs)


def look(differences: Sequence[float], planned: int) -> PairedResult:
    """Return the result of a look after all these differences."""
    return _interval(differences, planned, boundary(len(differences), planned))


def single_look(differences: Sequence[float], error: float = 0.05) -> PairedResult:
    """Return the mean with its t-interval after all pairs; their number is no choice.

    The interval excludes zero if and only if the t-test has a p-value below `error`. One pair has
    no interval.
    """
    k = len(differences)
    return _interval(differences, k, student_limit(error, k) if k > 1 else math.inf)


def _interval(differences: Sequence[float], planned: int, limit: float) -> PairedResult:
    k, mean = len(differences), fmean(differences)
    half = limit if math.isinf(limit) else limit * stdev(differences) / math.sqrt(k)
    return PairedResult(k, planned, mean, mean - half, mean + half)
