"""What a check found: which rule is broken, in which row, and what stands there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Failure:
    """One rule that is broken in one split.

    Attributes:
        rule: number of the invariant, or name of the statistic.
        split: train, test or val; empty where it is about the whole file.
        row: the first row that breaks it, from 0; None where it is about all rows together.
        rows: how many break it.
        found: what stands there, and what should.
    """

    rule: int | str
    split: str
    row: int | None
    rows: int
    found: str

    def __str__(self) -> str:
        """Say it in a line."""
        what = f"invariant {self.rule}" if isinstance(self.rule, int) else self.rule
        where = self.split if self.row is None else f"{self.split} row {self.row}"
        more = f" (and in {self.rows - 1:,} more)" if self.rows > 1 else ""
        return f"{what}{', ' if where else ''}{where}: {self.found}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"rule": self.rule, "split": self.split, "row": self.row, "found": self.found}


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
        self, rule: int, split: str, bad: Bools, found: Callable[[int], str], among: Bools
    ) -> Bools:
        """Apply an invariant to the rows of `among`; return those that are still without fault.

        A row that breaks one rule is not held against the following ones, which build on it.
        """
        self._applied(rule)
        bad = bad & among
        if bad.any():
            row = int(bad.argmax())
            self.failures.append(Failure(rule, split, row, int(bad.sum()), found(row)))
        return among & ~bad

    def holds(self, rule: int | str, split: str, right: bool, found: str) -> bool:
        """Apply a rule about all rows together; return whether it holds."""
        self._applied(rule)
        if not right:
            self.failures.append(Failure(rule, split, None, 0, found))
        return right

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
