"""What the parts of the MAD benchmark have found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from _harness import Claim


@dataclass
class Found:
    """Claims, and further numbers for the JSON line."""

    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Claim that a timing is at least so good."""
        self.claims.append(Claim(name, value, ">=", limit))

    def at_most(self, name: str, value: float, limit: float, *, timing: bool = True) -> None:
        """Claim a number that should be small; `timing=False` where other load cannot spoil it."""
        self.claims.append(Claim(name, value, "<=", limit, timing))

    def exact(self, name: str, value: float, wanted: float) -> None:
        """Claim a number that holds on any machine."""
        self.claims.append(Claim(name, value, "==", wanted, timing=False))
