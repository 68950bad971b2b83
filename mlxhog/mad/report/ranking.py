"""The ranking of a study at one moment, for leaderboard, plots and page.

It is read from the study's directory only, also while a scheduler writes there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlxhog.base.quantities import format_duration, format_value
from mlxhog.mad.run import Point, RunRecord
from mlxhog.mad.scores import UNFINISHED, CandidateScore, scores
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A study at one moment."""

    study: str  # its name
    suite: str  # name of the suite
    rows: tuple[CandidateScore, ...]  # the best first, as `scores` orders them
    records: tuple[RunRecord, ...]  # runs that ended, in order
    # key of a run -> its evaluations; empty if not requested
    curves: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    planned: int | None  # runs of all candidates so far; None if unknown
    running: bool = False  # whether a scheduler works on it
    facts: Mapping[str, str] = field(default_factory=dict)  # the definition as texts, by name

    @property
    def statuses(self) -> dict[str, int]:
        """Status -> number of runs that ended with it, the most frequent first."""
        return dict(Counter(record.status for record in self.records).most_common())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Full names of the tasks with a score, in the suite's order."""
        return tuple(dict.fromkeys(task for row in self.rows for task in row.tasks))

    @property
    def seconds(self) -> float:
        """Training time of all runs together."""
        return sum(record.seconds for record in self.records)

    @property
    def heading(self) -> str:
        """Study, suite, runs, time and statuses in one line."""
        of = "" if self.planned is None else f" of {self.planned}"
        ends = [f"{n} {name}" for name, n in self.statuses.items() if name != "done"]
        runs = f"{len(self.records)}{of} runs"
        time = f"{format_duration(self.seconds)} of training"
        return "  ".join([f"study {self.study}", f"suite {self.suite}", runs, time, *ends])

    @property
    def lacking(self) -> str:
        """The missing part of the study, in one sentence; "" for a complete one."""
        parts, ended = [], len(self.records)
        if self.planned is not None and ended < self.planned:
            parts.append(f"{ended} of {self.planned} runs have ended")
        if partial := sum(row.status == "partial" for row in self.rows):
            parts.append(f"{partial} of {len(self.rows)} candidates lack runs")
        if not parts and not self.rows:
            parts.append("no run has ended yet")
        verb = "is running" if self.running else "is partial"
        return f"this study {verb}: {', '.join(parts)}" if parts else ""


def read_ranking(store: Store, *, curves: bool = False) -> Ranking:
    """Return the present ranking of a study; `curves` reads the learning curves, too.

    Raises:
        StudyError: another version made the study, or a line is damaged.
    """
    study, records = store.study(), tuple(store.records())
    rows = scores(records, study.measured, study.seeds, study.select)
    runs = [run for row in rows for run in row.best]
    return Ranking(
        study=store.name,
        suite=study.suite,
        rows=tuple(rows),
        records=records,
        curves={run.key: tuple(store.curve(run.key)) for run in runs if curves},
        planned=_planned(store, study, rows),
        running=store.is_locked(),
        facts=_facts(study, records),
    )


def _planned(store: Store, study: Study, rows: Sequence[CandidateScore]) -> int:
    """Runs of a list or a grid, or of the proposals of another sampler; without skipped runs."""
    total = study.total if not study.space or study.sampler == "grid" else None
    if total is None:
        total = len({one.candidate for one in store.proposals()}) * study.runs_each
    return total - sum(len(row.missing) for row in rows if row.status == "pruned")


def _facts(study: Study, records: Sequence[RunRecord]) -> dict[str, str]:
    """The definition of a study as texts, by name, with its tasks, and where it ran."""
    suite = study.measured
    whole = {
        **study.to_dict(),
        "protocol": {**suite.protocol, **study.protocol},
        "tasks": list(dict.fromkeys(setting.task for setting in suite.settings)),
        "points": suite.points,
        "hosts": sorted({record.host for record in records}),
    }
    return {name: _words(v) for name, v in whole.items() if v not in (None, (), [], {}, "")}


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(own)}" for name, own in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_words, value))
    return "auto" if value is None else format_value(value)


WITHIN = 0.05
"""Largest difference of a cost from the first candidate's that counts as equal."""


def equal_cost(rows: Sequence[CandidateScore], cost: str) -> dict[str, int]:
    """Return candidate -> rank among the finished ones that cost as much as the first.

    Args:
        rows: the best first.
        cost: "params" or "state_bytes".
    """
    finished = [row for row in rows if row.status not in UNFINISHED]
    costs = {row.candidate: getattr(row, cost) for row in finished}
    first = next(iter(costs.values()), 0)
    alike = [name for name, own in costs.items() if abs(own - first) <= WITHIN * first]
    return {name: rank for rank, name in enumerate(alike, start=1)}
