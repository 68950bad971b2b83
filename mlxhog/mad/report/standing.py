"""What is known of a study at one moment: everything that leaderboard, plots and page show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlxhog.mad.result import Point
from mlxhog.mad.scores import Row
from mlxhog.mad.study.record import Record


@dataclass(frozen=True, kw_only=True)
class Against:
    """The order of the candidates beside that of another study.

    Attributes:
        study: name of the other one.
        shared: this study's candidates shared one embedding, the other's did not.
        spearman: rank correlation of the scores; NaN where it is undefined.
        pairs: candidate -> (score here, score there), of those that lack runs in neither.
    """

    study: str
    shared: bool
    spearman: float
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
        chosen: candidate -> the runs that its score is made of.
        shared: whether the candidates trained one embedding together.
        against: the order beside another study's, where there is one to compare with.
    """

    study: str
    suite: str
    rows: tuple[Row, ...]
    records: tuple[Record, ...]
    curves: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    planned: int | None
    running: bool = False
    facts: tuple[tuple[str, str], ...] = ()
    chosen: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    shared: bool = False
    against: Against | None = None

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
