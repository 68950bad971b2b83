"""The ranking of a study at one moment, for leaderboard, plots and page.

It is read from the study's directory only, also while a scheduler writes there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from mlxhog.base.quantities import format_duration, format_value
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import Point
from mlxhog.mad.scores import UNFINISHED, CandidateScore, Select, scores
from mlxhog.mad.study import study as studies
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.store import Store, StudyRecord
from mlxhog.mad.study.study import Study
from mlxhog.mad.suites import Suite
from mlxhog.mad.tasks import GENERATOR_VERSION


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A study at one moment.

    Attributes:
        study: its name.
        suite: name of the suite.
        rows: the best first, as `scores` orders them.
        records: runs that ended, in order.
        curves: key of a run -> its evaluations; empty if not requested.
        planned: runs of all candidates so far; None if unknown.
        running: whether a scheduler works on it.
        facts: the protocol in words, by name.
    """

    study: str
    suite: str
    rows: tuple[CandidateScore, ...]
    records: tuple[StudyRecord, ...]
    curves: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    planned: int | None
    running: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)

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


def read_ranking(store: Store, *, select: Select | None = None, curves: bool = False) -> Ranking:
    """Return the present ranking of a study.

    Args:
        store: of the study.
        select: rows whose accuracy selects between optimiser points; None is the study's.
        curves: whether to read the learning curves.

    Raises:
        StudyError: another version made the study, a line is damaged, or its runs have no
            validation rows for the selection.
    """
    study = studies.read(store)
    measured = study.measured()
    select = select or study.select
    records = tuple(store.records())
    rows = scores(records, measured, select, study.seeds)
    runs = [run for row in rows for run in row.best]
    return Ranking(
        study=store.name,
        suite=study.suite,
        rows=tuple(rows),
        records=records,
        curves={run.key: tuple(store.curve(run.key)) for run in runs if curves},
        planned=_planned(store, study, measured, rows),
        running=store.is_locked(),
        facts=_facts(study, measured, select, records),
    )


def _planned(store: Store, study: Study, measured: Suite, rows: Sequence[CandidateScore]) -> int:
    """Runs of a list or a grid, or of the proposals of another sampler; without skipped runs."""
    skipped = sum(len(row.missing) for row in rows if row.status == "pruned")
    if not study.space or study.sampler == "grid":
        total = Planning(study).total
        if total is not None:
            return total - skipped
    proposed = {one.candidate for one in store.proposals()}
    return len(proposed) * measured.runs * len(study.seeds) - skipped


def _facts(
    study: Study, measured: Suite, select: Select, records: Sequence[StudyRecord]
) -> dict[str, str]:
    """The protocol of a study in words, by name."""

    def words(values: Mapping[str, object]) -> str:
        return ", ".join(f"{name} {format_value(v)}" for name, v in values.items())

    protocol = Protocol(**{**measured.protocol, **study.protocol}).to_dict()
    own = {name: v for name, v in protocol.items() if v is not None and name not in _POINT}
    points = ({name: v or "auto" if name == "lr" else v for name, v in p.items()}
              for p in measured.points)  # fmt: skip
    tasks = dict.fromkeys(setting.task for setting in measured.settings)
    widths = {setting.dim or measured.dim for setting in measured.settings}
    facts = {
        "tasks": f"{', '.join(tasks)}: {len(measured.settings)} settings of suite {study.suite}",
        "optimiser points": "; ".join(map(words, points)),
        "seeds": ", ".join(map(str, study.seeds)),
        "width": ", ".join(map(str, sorted(widths, reverse=True))),
        "position": study.position,
        "protocol": words(own),
        "selected by": f"{select} rows",
        "trained by": f"{study.workers}, {study.threads} threads each",
        "candidates from": study.sampler if study.space else "a list",
        "pruning": "on: runs may end at rungs" if study.prune else "off",
        "rows drawn by": f"generator {GENERATOR_VERSION} of mlxhog {version('mlxhog')}",
        "hosts": ", ".join(sorted({record.host for record in records})),
    }
    if study.share_embedding:
        facts["embedding"] = "shared by all candidates"
    if len(measured.lrs) > 1:
        lr = format_value(measured.fixed_lr or "auto")
        facts["step sizes"] = f"score: the best of each setting; fixed: {lr}"
    return facts


_POINT = ("lr", "weight_decay")
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
