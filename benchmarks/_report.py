"""The rows of `model_speed.py`: programs in turns, tokens per second, ratios and their targets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from _arms import Program, Turns, in_turns
from _harness import Claim, Sample

OURS, PEERS = "_model_ours", "_model_peers"
TORCH, MLX, PACKAGE, TRANSFORMERS = "ours, torch", "ours, mlx", "xlstm", "transformers"


@dataclass
class Report:
    """What the parts found so far."""

    quick: bool
    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """Turns of every arm; a median wants at least five."""
        return 5 if self.quick else 9

    @property
    def seconds(self) -> float:
        """Least length of one arm's turn."""
        return 0.4 if self.quick else 1.0

    def measure(
        self, row: str, programs: Mapping[str, Program], tokens: int, threads: int
    ) -> Turns:
        """Let programs take turns; print and keep their tokens per second.

        Args:
            row: name in the table and in the JSON line.
            programs: by name; all work through the same tokens.
            tokens: in one step.
            threads: of each.
        """
        found = in_turns(programs, threads=threads, turns=self.turns, seconds=self.seconds)
        rates = {
            name: Sample.of([tokens / s for s in seconds])
            for name, seconds in found.seconds.items()
        }
        print(f"\n{row}: tokens per second, median (range)")
        for name, rate in rates.items():
            print(f"  {name:16} {rate.median:10,.0f}  ({rate.low:,.0f} - {rate.high:,.0f})")
        sys.stdout.flush()
        self.results[row] = {"tokens_per_s": rates}
        return found

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Claim a ratio."""
        self.claims.append(Claim(name, value, ">=", limit))

    def at_most(self, name: str, value: float, limit: float, *, timing: bool = True) -> None:
        """Claim a ratio that should be small; `timing=False` where other load cannot spoil it."""
        self.claims.append(Claim(name, value, "<=", limit, timing))
