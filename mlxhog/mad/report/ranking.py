"""The ranking of a study at one moment, for leaderboard, plots and page.

It is read from the study's directory only, also while a scheduler writes there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from mlxhog.base.quantities import format_value
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import Point, solved_accuracy
from mlxhog.mad.scores import UNFINISHED, CandidateScore, Select, scores
from mlxhog.mad.study import study as studies
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.store import Store, StudyRecord
from mlxhog.mad.study.study import Study
from mlxhog.mad.suites import Suite
from mlxhog.mad.tasks import GENERATOR_VERSION, find


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
        facts: the protocol in words, such as ("seeds", "0, 1, 2").
    """

    study: str
    suite: str
    rows: tuple[CandidateScore, ...]
    records: tuple[StudyRecord, ...]
    curves: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    planned: int | None
    running: bool = False
    facts: tuple[tuple[str, str], ...] = ()

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
    def lacking(self) -> str:
        """The missing part of the study, in one sentence; "" for a complete one."""
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


def read_ranking(
    store: Store,
    *,
    select: Select | None = None,
    curves: bool = False,
) -> Ranking:
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
    protocol = Protocol(**{**measured.protocol, **study.protocol})
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
        facts=_facts(study, measured, protocol, select, records),
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
    study: Study,
    measured: Suite,
    protocol: Protocol,
    select: Select,
    records: Sequence[StudyRecord],
) -> tuple[tuple[str, str], ...]:
    """The protocol of a study in words, by name."""
    points = "; ".join(
        ", ".join(
            f"{name} {'auto' if value is None else format_value(value)}"
            for name, value in point.items()
        )
        for point in measured.points
    )
    own = {
        name: value
        for name, value in protocol.to_dict().items()
        if value is not None and not any(name in point for point in measured.points)
    }
    enough = solved_accuracy(protocol.stop_accuracy)
    names = dict.fromkeys(setting.task for setting in measured.settings)
    tasks = ", ".join(f"{task} ({find(task).short})" for task in names)
    hosts = sorted({record.host for record in records})
    facts = [
        ("tasks", f"{tasks}: {len(measured.settings)} settings of suite {study.suite}"),
        ("optimiser points", points),
        (
            "step sizes",
            f"score: the best of each setting; fixed: {format_value(measured.fixed_lr or 'auto')}"
            if len(measured.lrs) > 1
            else "",
        ),
        ("solved", f"at the first evaluation with acc_token >= {format_value(enough)}"),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("width", _widths(measured)),
        ("position", "" if study.position == "none" else study.position),
        ("protocol", ", ".join(f"{name} {format_value(value)}" for name, value in own.items())),
        ("selected by", f"{select} rows"),
        ("trained by", f"{study.workers}, {study.threads} thread{'s' * (study.threads > 1)} each"),
        ("candidates from", study.sampler if study.space else "a list"),
        ("pruning", "on: runs may end at rungs" if study.prune else "off"),
        ("rows drawn by", f"generator {GENERATOR_VERSION} of mlxhog {version('mlxhog')}"),
        ("hosts", ", ".join(hosts)),
    ]
    return tuple((name, value) for name, value in facts if value)


def _widths(measured: Suite) -> str:
    """Return the width of the candidates, and those of settings with their own."""
    own = sorted({setting.dim for setting in measured.settings if setting.dim is not None})
    return str(measured.dim) + f"; some settings {', '.join(map(str, own))}" * bool(own)


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
