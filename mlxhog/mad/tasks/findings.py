"""The results of a check of rows: invariants, and bounds of random statistics.

The bounds are wide enough for good data of any seed and size. Each is that of the golden data's
description or, if that is too narrow for few draws, the value that good data exceed once in a
million.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.task import Ints

Bools = NDArray[np.bool_]


ENOUGH_ROWS = 128
"""Fewest rows of a split for a check of the bounds."""

CHI_SQUARE_PER_DF = 3.0
SHARE = 0.03
DEVIATIONS = 5.0
_ONCE_IN_A_MILLION = 4.7534
"""Standard deviations of a normal variable, one side."""

RARE = 1e-4
"""Probability below which equal rows count as a failure."""


@dataclass(frozen=True)
class Failure:
    """One rule that is broken in one split.

    Attributes:
        rule: number of the invariant, or name of the statistic.
        split: train, test or val; "" for a rule about the whole file.
        row: the first row that breaks it, from 0; None for a rule about all rows together.
        rows: number of rows that break it.
        message: the present and the expected values.
    """

    rule: int | str
    split: str
    row: int | None
    rows: int
    message: str

    def __str__(self) -> str:
        """Return the failure in a line."""
        what = f"invariant {self.rule}" if isinstance(self.rule, int) else self.rule
        where = self.split if self.row is None else f"{self.split} row {self.row}"
        more = f" (and in {self.rows - 1:,} more)" if self.rows > 1 else ""
        return f"{what}{', ' if where else ''}{where}: {self.message}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"rule": self.rule, "split": self.split, "row": self.row, "found": self.message}


@dataclass
class Findings:
    """The results so far.

    Attributes:
        failures: in the order of discovery.
        checked: the applied rules.
        notes: remarks that are not failures.
    """

    failures: list[Failure] = field(default_factory=list)
    checked: list[int | str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no rule is broken."""
        return not self.failures

    def rows(
        self, rule: int, split: str, bad: Bools, message: Callable[[int], str], among: Bools
    ) -> Bools:
        """Apply an invariant to the rows of `among`; return those that keep it.

        A row that breaks one rule is excluded from the following ones, which depend on it.
        """
        self._applied(rule)
        bad = bad & among
        if bad.any():
            row = int(bad.argmax())
            self.failures.append(Failure(rule, split, row, int(bad.sum()), message(row)))
        return among & ~bad

    def holds(self, rule: int | str, split: str, right: bool, message: str) -> bool:
        """Apply a rule about all rows together; return whether it holds."""
        self._applied(rule)
        if not right:
            self.failures.append(Failure(rule, split, None, 0, message))
        return right

    def has_width(self, rule: int, split: str, x: Ints, width: int, why: str = "") -> bool:
        """Apply the rule that rows have `width` tokens; return whether it holds."""
        message = f"rows have {x.shape[1]} tokens, expected {width}{why}"
        return self.holds(rule, split, x.shape[1] == width, message)

    def targets(self, rule: int, split: str, y: Ints, expected: Ints, among: Bools) -> Bools:
        """Apply the rule about all targets; return the rows that keep it."""
        wrong = y != expected

        def say(row: int) -> str:
            at = first_place(wrong[row])
            return f"target {y[row, at]} at {at}, expected {expected[row, at]}"

        return self.rows(rule, split, wrong.any(1), say, among)

    def uniform(self, rule: str, split: str, draws: Ints, low: int, high: int) -> None:
        """Test draws of low .. high - 1 for the uniform distribution: Pearson's chi-square."""
        classes = high - low
        if classes < 2 or len(draws) < classes:
            return
        counts = np.bincount(draws - low, minlength=classes)
        expected = len(draws) / classes
        per_df = float(((counts - expected) ** 2 / expected).sum() / (classes - 1))
        bound = max(CHI_SQUARE_PER_DF, _chi_square_per_df(classes - 1))
        most = int(counts.argmax())
        self.holds(
            rule,
            split,
            per_df <= bound,
            f"chi-square per degree of freedom is {per_df:.2f}, expected at most {bound:.2f}; "
            f"{low + most} occurs {counts[most]} times, expected {expected:.1f} times",
        )

    def share(self, rule: str, split: str, hits: Bools, low: float, high: float) -> None:
        """Test the share of hits among draws for its range, plus or minus its spread."""
        draws = hits.size
        if not draws:
            return
        got = int(hits.sum()) / draws
        slack = max(SHARE, DEVIATIONS * math.sqrt(max(high * (1 - high), 0.01) / draws))
        self.holds(
            rule,
            split,
            low - slack <= got <= high + slack,
            f"the share is {got:.3f}, expected {low:.3f} to {high:.3f}, plus or minus {slack:.3f}",
        )

    def mean(self, rule: str, split: str, of: NDArray[Any], expected: float) -> None:
        """Test the mean of independent numbers (n,) by their spread."""
        slack = DEVIATIONS * float(of.std()) / math.sqrt(len(of)) + 1e-9 + 0.01 * abs(expected)
        self.holds(
            rule,
            split,
            abs(float(of.mean()) - expected) <= slack,
            f"the mean is {of.mean():.3f}, expected {expected:.3f} plus or minus {slack:.3f}",
        )

    def duplicates(self, data: Dataset, chance: float) -> None:
        """Count equal rows; `chance` is the approximate probability of two equal rows."""

        def hold(rule: str, split: str, count: int, pairs: float, what: str) -> None:
            expected = pairs * chance
            bound = _rare_count(expected)
            chance_text = f"{expected:.2g} are expected by chance, {bound:,} would be rare"
            message = f"{count:,} {what}; {chance_text}"
            self.holds(rule, split, count < bound, message)

        rows = {split: [row.tobytes() for row in x] for split, (x, _) in data.splits().items()}
        for split, own in rows.items():
            n = len(own)
            hold("duplicate rows", split, n - len(set(own)), n * (n - 1) / 2, "rows are duplicates")
        n_train, train = len(rows["train"]), set(rows.pop("train"))
        for split, own in rows.items():
            leaked = sum(row in train for row in own)
            hold("leak", split, leaked, float(n_train * len(own)), "rows are also in train")

    def _applied(self, rule: int | str) -> None:
        if rule not in self.checked:
            self.checked.append(rule)

    @property
    def invariants(self) -> list[int]:
        """Numbers of the applied invariants."""
        return sorted(rule for rule in self.checked if isinstance(rule, int))

    @property
    def bounds(self) -> list[str]:
        """Names of the statistics with a checked bound."""
        return [rule for rule in self.checked if isinstance(rule, str)]


def first_place(bad: Bools) -> int:
    """Return the first bad position of a row (length,)."""
    return int(bad.argmax())


def _chi_square_per_df(df: int) -> float:
    """Return the one-in-a-million quantile, by Wilson and Hilferty 1931."""
    spread = 2 / (9 * df)
    return (1 - spread + _ONCE_IN_A_MILLION * math.sqrt(spread)) ** 3


def _rare_count(expected: float) -> int:
    """Return the smallest count that a Poisson variable reaches with probability below `RARE`."""
    if expected > 100:
        return math.ceil(expected + DEVIATIONS * math.sqrt(expected))
    below, term, count = 0.0, math.exp(-expected), 0
    while 1 - below >= RARE:
        below += term
        count += 1
        term *= expected / count
    return count


def chance_of_pair(chance: float, noise_share: float, noise: float) -> float:
    """Return the probability of two equal pairs, of which a share is noise of `noise` kinds."""
    both_noise = noise_share**2 / noise if noise_share else 0.0
    return float(np.square(1 - noise_share) * chance + both_noise)
