"""What is known of a study at one moment: everything that leaderboard, plots and page show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlxhog.mad.result import Point

if TYPE_CHECKING:
    from mlxhog.mad.scores import Row
    from mlxhog.mad.study.record import Record


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What a shared embedding did to the order of the candidates.

    Attributes:
        spearman: rank correlation with the unshared scores; NaN where it is undefined.
        n: candidates that have both scores.
        pairs: candidate -> (unshared score, shared score).
    """

    spearman: float
    n: int
    pairs: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A study at one moment.

    Attributes:
        study: its name.
        suite: name of the suite.
        rows: the best first, as `mad.scores.scores` orders them.
        records: runs that ended, in the order in which they did.
        curves: key of a run -> its evaluations; empty where nobody asked for them.
        planned: runs of all candidates so far; None where nobody knows.
        running: whether a scheduler works on it now.
        facts: what was run, in words, such as ("seeds", "0, 1, 2").
        sharing: None where every candidate trained its own embedding.
    """

    study: str
    suite: str
    rows: tuple[Row, ...]
    records: tuple[Record, ...]
    curves: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    planned: int | None
    running: bool = False
    facts: tuple[tuple[str, str], ...] = ()
    sharing: Sharing | None = None

    @property
    def statuses(self) -> dict[str, int]:
        """Status -> number of runs that ended with it, the most frequent first."""
        return dict(Counter(record.status for record in self.records).most_common())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Full names of the tasks that any candidate has a score on, in the suite's order."""
        return tuple(dict.fromkeys(task for row in self.rows for task in row.tasks))

    @property
    def seconds(self) -> float:
        """How long all runs trained together."""
        return sum(record.seconds for record in self.records)

    @property
    def lacking(self) -> str:
        """Say what is missing from a whole study, in one sentence; "" for a whole one."""
        parts = []
        ended = len(self.records)
        if self.planned is not None and ended < self.planned:
            parts.append(f"{ended} of {self.planned} runs have ended")
        if partial := sum(row.status == "partial" for row in self.rows):
            parts.append(f"{partial} of {len(self.rows)} candidates lack runs")
        if not parts and not self.rows:
            parts.append("no run has ended yet")
        if not parts:
            return ""
        verb = "is running" if self.running else "is partial"
        return f"this study {verb}: {', '.join(parts)}"
