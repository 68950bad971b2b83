"""The leaderboard of a study at one moment: one table, as text, on a page, and as JSON.

It is read from the study's directory only, also while a scheduler writes there.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from mlxhog.base.quantities import format_duration, format_value
from mlxhog.mad.report.board import folded, score
from mlxhog.mad.run import Point, RunRecord
from mlxhog.mad.scores import LOST, UNFINISHED, CandidateScore, scores
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study
from mlxhog.mad.tasks import find
from mlxhog.report.table import Section

WITHIN = 0.05
"""Largest difference of a cost from the first candidate's that counts as equal."""
MOST_LISTED = 5
"""Most failed and diverged runs of the text; --json has all."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A study at one moment."""

    study: str  # its name
    suite: str  # name of the suite
    rows: tuple[CandidateScore, ...]  # the best first, as `scores` orders them
    records: tuple[RunRecord, ...]  # runs that ended, in order
    # key of a run -> its evaluations; empty if not requested
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    planned: int  # runs of all candidates so far
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
        ends = [f"{n} {name}" for name, n in self.statuses.items() if name != "done"]
        runs = f"{len(self.records)} of {self.planned} runs"
        time = f"{format_duration(self.seconds)} of training"
        return "  ".join([f"study {self.study}", f"suite {self.suite}", runs, time, *ends])

    @property
    def lacking(self) -> str:
        """The missing part of the study, in one sentence; "" for a complete one."""
        parts, ended = [], len(self.records)
        if ended < self.planned:
            parts.append(f"{ended} of {self.planned} runs have ended")
        if partial := sum(row.status == "partial" for row in self.rows):
            parts.append(f"{partial} of {len(self.rows)} candidates lack runs")
        if not parts and not self.rows:
            parts.append("no run has ended yet")
        verb = "is running" if self.running else "is partial"
        return f"this study {verb}: {', '.join(parts)}" if parts else ""

    @property
    def ceilings(self) -> str:
        """The tasks whose best possible score is below 1, in a line; "" without any."""
        lowest = {task: min(row.ceiling.get(task, 1.0) for row in self.rows) for task in self.tasks}
        below = [f"{task} {value:.3f}" for task, value in lowest.items() if value < 1]
        return f"best possible score, measured on the rows: {', '.join(below)}" if below else ""

    @property
    def troubles(self) -> list[dict[str, str]]:
        """The runs that count with a score of 0."""
        return [
            {"status": one.status, "layers": one.candidate, "run": one.title, "reason": one.reason,
             "host": one.host}
            for one in self.records
            if one.status in LOST
        ]  # fmt: skip


def read_ranking(store: Store, *, curves: bool = False) -> Ranking:
    """Return the present ranking of a study; `curves` reads the learning curves, too.

    Raises:
        StudyError: another version made the study, or a line is damaged.
    """
    study, records = store.study(), tuple(store.records())
    rows = scores(records, study.measured, study.seeds, study.select)
    # Of a list or a grid all runs are known, of another sampler those of its proposals.
    planned = study.total if not study.space or study.sampler == "grid" else None
    if planned is None:
        planned = len({one.candidate for one in store.proposals()}) * study.runs_each
    return Ranking(
        study=store.name,
        suite=study.suite,
        rows=tuple(rows),
        records=records,
        curves={run.key: store.curve(run.key) for row in rows for run in row.best if curves},
        planned=planned - sum(len(row.missing) for row in rows if row.status == "pruned"),
        running=store.is_locked(),
        facts=_facts(study, records),
    )


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


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the table: a field of --json, one on the board and the page, or both."""

    name: str  # of the field, by default that of a `CandidateScore`; "" for none
    head: str = ""  # above it on the board and the page; "" for none
    text: Callable[[CandidateScore], str] = str  # its cell there
    other: Callable[[CandidateScore], Any] | None = None  # its value, if it is not the field
    is_heat: bool = False  # whether the value colors its cell on the page

    def value(self, row: CandidateScore) -> Any:  # of many types
        """Return the value of a candidate."""
        return attrgetter(self.name)(row) if self.other is None else self.other(row)


def columns(ranking: Ranking) -> list[Column]:
    """Return the columns of the table; every form of it has these."""

    def accuracy(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def of_task(task: str) -> Column:
        def value(row: CandidateScore) -> float | None:
            return row.tasks.get(task)

        return Column("", find(task).short, lambda row: accuracy(value(row)), value, is_heat=True)

    def rank(cost: str) -> Callable[[CandidateScore], int | None]:
        ranks = equal_cost(ranking.rows, cost)
        return lambda row: ranks.get(row.candidate)

    by_val = any(row.val_score is not None for row in ranking.rows)
    others = (
        "interval", "state", "n_runs", "n_diverged", "n_failed", "settings", "tasks", "intervals",
        "acc_token", "ceiling", "seeds", "missing",
    )  # fmt: skip
    return [
        Column("layers", "layers", lambda row: folded(row.layers), attrgetter("candidate")),
        Column("score", "score", lambda row: score(row.score, row.interval)),
        Column("val_score", "val" * by_val, lambda row: accuracy(row.val_score)),
        *map(of_task, ranking.tasks),
        Column("params", "params", lambda row: f"{row.params:,}"),
        Column("state_bytes", "state bytes", lambda row: f"{row.state_bytes:,}"),
        Column("seconds", "time", lambda row: format_duration(row.seconds)),
        Column("status", "status", _status),
        Column("rank_equal_params", other=rank("params")),
        Column("rank_equal_state", other=rank("state_bytes")),
        *map(Column, others),
    ]


def _status(row: CandidateScore) -> str:
    """The status of a candidate, with its missing and lost runs."""
    counts = {"missing": len(row.missing), "diverged": row.n_diverged, "failed": row.n_failed}
    parts = [f"{n} {name}" for name, n in counts.items() if n and name != row.status]
    return ", ".join([row.status, *parts])


def to_json(ranking: Ranking) -> dict[str, Any]:
    """Return the whole ranking as plain values; scores and accuracies are in [0, 1]."""
    fields = [column for column in columns(ranking) if column.name]
    return {
        "study": ranking.study,
        "suite": ranking.suite,
        "partial": bool(ranking.lacking),
        "running": ranking.running,
        "runs_done": len(ranking.records),
        "runs_planned": ranking.planned,
        "statuses": ranking.statuses,
        "seconds": ranking.seconds,
        "candidates": [{one.name: one.value(row) for one in fields} for row in ranking.rows],
        "troubles": ranking.troubles,
        "facts": dict(ranking.facts),
    }


def section(ranking: Ranking) -> Section:
    """Return heading, table and notes; layers are folded, as `--layers` takes them."""
    shown = [column for column in columns(ranking) if column.head]
    rows = [
        [str(rank), *(column.text(row) for column in shown)]
        for rank, row in enumerate(ranking.rows, start=1)
    ]
    notes, places = [], {row.candidate: f"#{n}" for n, row in enumerate(ranking.rows, start=1)}
    for cost, name in (("params", "parameters"), ("state_bytes", "state bytes")):
        alike = [places[candidate] for candidate in equal_cost(ranking.rows, cost)]
        if len(rows) > 1 and alike:
            others = f", before {', '.join(alike[1:])}" if alike[1:] else " alone"
            notes.append(f"at equal {name} (within {WITHIN:.0%}): {alike[0]}{others}")
    lost = ranking.troubles
    notes += [f"... {len(lost) - MOST_LISTED} more, see --json"] * (len(lost) > MOST_LISTED)
    notes += [
        f"{one['status']}: `{one['layers']}` on {one['run']}"
        + f": {one['reason']}" * bool(one["reason"])
        for one in lost[-MOST_LISTED:]
    ]
    header = ["#", *(column.head for column in shown)]
    notes = [*filter(None, [*notes, ranking.ceilings, ranking.lacking])]
    return Section(ranking.heading, header, rows, notes)
