"""One finding: what was expected, what was found, and what follows from the difference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Result(StrEnum):
    """How a check ended."""

    PASS = "PASS"
    WARN = "WARN"
    """Something works less well than it should, or mlxhog goes another way."""
    FAIL = "FAIL"
    """A promise does not hold here; `mlxhog doctor` ends with exit code 1."""
    ABSENT = "absent"
    """There is nothing here to check."""


@dataclass(frozen=True)
class Check:
    """A finding.

    Attributes:
        name: what was looked at.
        result: how it ended.
        found: what this machine showed.
        expected: what it should show.
        consequence: what follows where it does not; "" where all is well.
    """

    name: str
    result: Result
    found: str
    expected: str
    consequence: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check(
    name: str,
    ok: bool,
    found: object,
    expected: str,
    consequence: str,
    *,
    otherwise: Result = Result.FAIL,
) -> Check:
    """Return PASS, or `otherwise` with its consequence."""
    if ok:
        return Check(name, Result.PASS, str(found), expected)
    return Check(name, otherwise, str(found), expected, consequence)


def absent(name: str, why: str, expected: str) -> Check:
    """Return a check that has nothing to look at."""
    return Check(name, Result.ABSENT, why, expected)
