"""Bounds of what is random: wide enough that good data of any seed pass, in every size.

Each bound is the one of the golden data's description or, where few draws make that too narrow,
what good data exceed once in a million.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.check.findings import Findings

ENOUGH_ROWS = 128
"""Splits of fewer rows are not held against any bound."""

CHI_SQUARE_PER_DF = 3.0
SHARE = 0.03
DEVIATIONS = 5.0
_ONCE_IN_A_MILLION = 4.7534
"""Standard deviations of a normal variable, one side."""

RARE = 1e-4
"""Coincidences of rows that are rarer than this are no coincidence."""

Ints = NDArray[np.integer[Any]]


def uniform(found: Findings, rule: str, split: str, draws: Ints, low: int, high: int) -> None:
    """Hold draws of low .. high - 1 against the uniform distribution, by Pearson's chi-square."""
    classes = high - low
    if classes < 2 or len(draws) < classes:
        return
    counts = np.bincount(draws - low, minlength=classes)
    expected = len(draws) / classes
    per_df = float(((counts - expected) ** 2 / expected).sum() / (classes - 1))
    bound = max(CHI_SQUARE_PER_DF, _chi_square_per_df(classes - 1))
    most = int(counts.argmax())
    found.holds(
        rule,
        split,
        per_df <= bound,
        f"chi-square per degree of freedom is {per_df:.2f}, wanted at most {bound:.2f}; "
        f"{low + most} occurs {counts[most]} times where {expected:.1f} are expected",
    )


def _chi_square_per_df(df: int) -> float:
    """The quantile that good data exceed once in a million, by Wilson and Hilferty 1931."""
    spread = 2 / (9 * df)
    return (1 - spread + _ONCE_IN_A_MILLION * math.sqrt(spread)) ** 3


def share(
    found: Findings, rule: str, split: str, hits: int, draws: int, low: float, high: float
) -> None:
    """Hold a share of draws against the range it should be in, give or take its spread."""
    if not draws:
        return
    got = hits / draws
    slack = max(SHARE, DEVIATIONS * math.sqrt(max(high * (1 - high), 0.01) / draws))
    found.holds(
        rule,
        split,
        low - slack <= got <= high + slack,
        f"the share is {got:.3f}, wanted {low:.3f} to {high:.3f} give or take {slack:.3f}",
    )


def mean(found: Findings, rule: str, split: str, of: NDArray[Any], expected: float) -> None:
    """Hold the mean of independent numbers (n,) against what it should be, by their own spread."""
    slack = DEVIATIONS * float(of.std()) / math.sqrt(len(of)) + 1e-9 + 0.01 * abs(expected)
    found.holds(
        rule,
        split,
        abs(float(of.mean()) - expected) <= slack,
        f"the mean is {of.mean():.3f}, wanted {expected:.3f} give or take {slack:.3f}",
    )


def coincidences(
    found: Findings, rule: str, split: str, count: int, pairs: float, chance: float, what: str
) -> None:
    """Hold the number of equal rows against how many chance makes.

    Args:
        found: takes the result.
        rule: its name.
        split: of the rows.
        count: equal pairs of rows.
        pairs: pairs of rows that could be equal.
        chance: that two rows are equal, or more.
        what: the equal rows, for the message.
    """
    expected = pairs * chance
    bound = _rare_count(expected)
    found.holds(
        rule,
        split,
        count < bound,
        f"{count:,} {what}; chance makes {expected:.2g}, {bound:,} would be rare",
    )


def _rare_count(expected: float) -> int:
    """The smallest count that a Poisson variable reaches with a probability below `RARE`."""
    if expected > 100:
        return math.ceil(expected + DEVIATIONS * math.sqrt(expected))
    below, term, count = 0.0, math.exp(-expected), 0
    while 1 - below >= RARE:
        below += term
        count += 1
        term *= expected / count
    return count
