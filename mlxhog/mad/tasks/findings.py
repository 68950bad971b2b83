"""The results of a check of rows: rules that they keep, and bounds of what is random.

The bounds are wide enough that good data of any seed pass, in every size. Each is the one of the
golden data's description or, where few draws make that too narrow, what good data exceed once in a
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
"""Splits of fewer rows are not held against any bound."""

CHI_SQUARE_PER_DF = 3.0
SHARE = 0.03
DEVIATIONS = 5.0
_ONCE_IN_A_MILLION = 4.7534
"""Standard deviations of a normal variable, one side."""

RARE = 1e-4
"""Coincidences of rows that are rarer than this are no coincidence."""


@dataclass(frozen=True)
class Failure:
    """One rule that is broken in one split.

    Attributes:
        rule: number of the invariant, or name of the statistic.
        split: train, test or val; empty where it is about the whole file.
        row: the first row that breaks it, from 0; None where it is about all rows together.
        rows: how many break it.
        message: what stands there, and what should.
    """

    rule: int | str
    split: str
    row: int | None
    rows: int
    message: str

    def __str__(self) -> str:
        """Say it in a line."""
        what = f"invariant {self.rule}" if isinstance(self.rule, int) else self.rule
        where = self.split if self.row is None else f"{self.split} row {self.row}"
        more = f" (and in {self.rows - 1:,} more)" if self.rows > 1 else ""
        return f"{what}{', ' if where else ''}{where}: {self.message}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"rule": self.rule, "split": self.split, "row": self.row, "found": self.message}


@dataclass
class Findings:
    """What was found so far.

    Attributes:
        failures: in the order of discovery.
        checked: the rules that were applied.
        notes: what is worth knowing and no failure.
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
        """Apply an invariant to the rows of `among`; return those that are still without fault.

        A row that breaks one rule is not held against the following ones, which build on it.
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
        """Apply the rule that rows have so many tokens; return whether it holds."""
        message = f"rows have {x.shape[1]} tokens, wanted {width}{why}"
        return self.holds(rule, split, x.shape[1] == width, message)

    def targets(self, rule: int, split: str, y: Ints, expected: Ints, among: Bools) -> Bools:
        """Apply the rule that says every target; return the rows that are still without fault."""
        wrong = y != expected

        def say(row: int) -> str:
            at = first_place(wrong[row])
            return f"target {y[row, at]} at {at}, wanted {expected[row, at]}"

        return self.rows(rule, split, wrong.any(1), say, among)

    def uniform(self, rule: str, split: str, draws: Ints, low: int, high: int) -> None:
        """Hold draws of low .. high - 1 against the uniform distribution: Pearson's chi-square."""
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
            f"chi-square per degree of freedom is {per_df:.2f}, wanted at most {bound:.2f}; "
            f"{low + most} occurs {counts[most]} times where {expected:.1f} are expected",
        )

    def share(self, rule: str, split: str, hits: Bools, low: float, high: float) -> None:
        """Hold the share of draws that are hits against its range, give or take its spread."""
        draws = hits.size
        if not draws:
            return
        got = int(hits.sum()) / draws
        slack = max(SHARE, DEVIATIONS * math.sqrt(max(high * (1 - high), 0.01) / draws))
        self.holds(
            rule,
            split,
            low - slack <= got <= high + slack,
            f"the share is {got:.3f}, wanted {low:.3f} to {high:.3f} give or take {slack:.3f}",
        )

    def mean(self, rule: str, split: str, of: NDArray[Any], expected: float) -> None:
        """Hold the mean of independent numbers (n,) against another one, by their own spread."""
        slack = DEVIATIONS * float(of.std()) / math.sqrt(len(of)) + 1e-9 + 0.01 * abs(expected)
        self.holds(
            rule,
            split,
            abs(float(of.mean()) - expected) <= slack,
            f"the mean is {of.mean():.3f}, wanted {expected:.3f} give or take {slack:.3f}",
        )

    def duplicates(self, data: Dataset, chance: float) -> None:
        """Count equal rows; `chance` is about how likely two rows of the task are equal."""

        def hold(rule: str, split: str, count: int, pairs: float, what: str) -> None:
            expected = pairs * chance
            bound = _rare_count(expected)
            message = f"{count:,} {what}; chance makes {expected:.2g}, {bound:,} would be rare"
            self.holds(rule, split, count < bound, message)

        rows = {split: [row.tobytes() for row in x] for split, (x, _) in data.splits().items()}
        for split, own in rows.items():
            n = len(own)
            hold("duplicate rows", split, n - len(set(own)), n * (n - 1) / 2, "rows stand twice")
        n_train, train = len(rows["train"]), set(rows.pop("train"))
        for split, own in rows.items():
            leaked = sum(row in train for row in own)
            hold("leak", split, leaked, float(n_train * len(own)), "rows stand in train, too")

    def _applied(self, rule: int | str) -> None:
        if rule not in self.checked:
            self.checked.append(rule)

    @property
    def invariants(self) -> list[int]:
        """Numbers of the invariants that were applied."""
        return sorted(rule for rule in self.checked if isinstance(rule, int))

    @property
    def bounds(self) -> list[str]:
        """Names of the statistics that were held against a bound."""
        return [rule for rule in self.checked if isinstance(rule, str)]


def first_place(bad: Bools) -> int:
    """Return the first position of a row's (length,) that is bad."""
    return int(bad.argmax())


def _chi_square_per_df(df: int) -> float:
    """The quantile that good data exceed once in a million, by Wilson and Hilferty 1931."""
    spread = 2 / (9 * df)
    return (1 - spread + _ONCE_IN_A_MILLION * math.sqrt(spread)) ** 3


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


def chance_of_pair(chance: float, noise_share: float, noise: float) -> float:
    """Return how likely two pairs are equal where each is noise of `noise` kinds with a share."""
    both_noise = noise_share**2 / noise if noise_share else 0.0
    return float(np.square(1 - noise_share) * chance + both_noise)
