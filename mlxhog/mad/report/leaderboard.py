"""The leaderboard of a study: one table, as lines of text, on a page, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from mlxhog.base.quantities import format_duration
from mlxhog.mad.report.board import accuracy, cut, score, short
from mlxhog.mad.report.ranking import WITHIN, Ranking, equal_cost
from mlxhog.mad.scores import LOST, CandidateScore
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.tasks import find
from mlxhog.report import table as text_table
from mlxhog.report.table import Section

NUMBERS = (
    "score", "interval", "fixed_score", "val_score", "params", "state", "state_bytes", "seconds",
    "status", "n_runs", "n_diverged", "n_failed", "settings",
)  # fmt: skip
BY_TASK = ("tasks", "intervals", "acc_token", "ceiling")


def to_json(ranking: Ranking) -> dict[str, Any]:
    """Return the whole ranking as plain values; scores and accuracies are in [0, 1]."""
    costs = {"params": "params", "state": "state_bytes"}
    equal = {name: equal_cost(ranking.rows, cost) for name, cost in costs.items()}
    return {
        "study": ranking.study,
        "suite": ranking.suite,
        "partial": bool(ranking.lacking),
        "running": ranking.running,
        "runs_done": len(ranking.records),
        "runs_planned": ranking.planned,
        "statuses": ranking.statuses,
        "seconds": ranking.seconds,
        "candidates": [
            {
                "layers": row.candidate,
                **{name: getattr(row, name) for name in NUMBERS},
                **{name: dict(getattr(row, name)) for name in BY_TASK},
                "seeds": {str(seed): value for seed, value in row.seeds.items()},
                "missing": list(row.missing),
                **{f"rank_equal_{name}": own.get(row.candidate) for name, own in equal.items()},
            }
            for row in ranking.rows
        ],
        "troubles": [
            {"layers": record.candidate, "run": record.title, "status": record.status,
             "reason": record.reason, "host": record.host}
            for record in lost(ranking)
        ],
        "facts": dict(ranking.facts),
    }  # fmt: skip


class Column(NamedTuple):
    """A column of the board, after rank and layers."""

    head: str  # its name
    text: Callable[[CandidateScore], str]  # its cell
    # the accuracy that colors its cell on a page
    heat: Callable[[CandidateScore], float | None] = lambda row: None


def table(ranking: Ranking) -> list[Column]:
    """Return the columns of the board after rank and layers; every form of it has these."""
    scored = [("fixed", "fixed_score"), ("val", "val_score")]
    shown = [one for one in scored if any(getattr(row, one[1]) is not None for row in ranking.rows)]
    return [
        Column("score", lambda row: score(row.score, row.interval)),
        *(Column(head, partial(_accuracy_of, field)) for head, field in shown),
        *(_task_column(task) for task in ranking.tasks),
        Column("params", lambda row: f"{row.params:,}"),
        Column("state bytes", lambda row: f"{row.state_bytes:,}"),
        Column("time", lambda row: format_duration(row.seconds)),
        Column("status", status),
    ]


def _accuracy_of(field: str, row: CandidateScore) -> str:
    return accuracy(getattr(row, field))


def _task_column(task: str) -> Column:
    def value(row: CandidateScore) -> float | None:
        return row.tasks.get(task)

    return Column(find(task).short, lambda row: accuracy(value(row)), value)


NOTE = (
    "score: mean of acc_macro of the test rows over the tasks, ± 95 % interval over seeds; fixed: "
    "at the suite's own step size; params: parameters of the layers; state: what the layers keep "
    "per sequence, in float32; time: all runs"
)


def remarks(rows: Sequence[CandidateScore]) -> list[str]:
    """Return the order at equal parameters, and at equal state."""
    places = {row.candidate: f"#{rank}" for rank, row in enumerate(rows, start=1)}
    notes = []
    for cost, name in (("params", "parameters"), ("state_bytes", "state bytes")):
        alike = [places[candidate] for candidate in equal_cost(rows, cost)]
        if len(rows) > 1 and alike:
            others = f", before {', '.join(alike[1:])}" if alike[1:] else " alone"
            notes.append(f"at equal {name} (within {WITHIN:.0%}): {alike[0]}{others}")
    return notes


def status(row: CandidateScore) -> str:
    """Return the status of a candidate, with its missing and lost runs."""
    counts = {
        "missing": len(row.missing), "diverged": row.n_diverged, "failed": row.n_failed,
    }  # fmt: skip
    parts = [f"{n} {name}" for name, n in counts.items() if n and name != row.status]
    return ", ".join([row.status, *parts])


def lost(ranking: Ranking) -> list[StudyRecord]:
    """Return the runs that count with a score of 0."""
    return [record for record in ranking.records if record.status in LOST]


def ceiling_note(ranking: Ranking) -> str:
    """Return the tasks whose best possible score is below 1; "" without any."""
    lowest: dict[str, float] = {}
    for row in ranking.rows:
        for task, value in row.ceiling.items():
            lowest[task] = min(value, lowest.get(task, 1.0))
    below = [f"{task} {value:.3f}" for task, value in lowest.items() if value < 1]
    return f"best possible score, measured on the rows: {', '.join(below)}" if below else ""


MOST_LISTED = 5
"""Most failed and diverged runs; --json has all."""
_BESIDE_LAYERS = 22
"""Columns of a terminal that the layers leave to rank and score."""


def lines(ranking: Ranking, width: int | None = None) -> list[str]:
    """Return heading, table and notes, no wider than a terminal; None for whole layers."""
    columns = table(ranking)
    names = [row.candidate for row in ranking.rows]
    if width is not None:
        names = [short(name, max(len("layers"), width - _BESIDE_LAYERS)) for name in names]
    rows = [
        [str(rank), name, *(column.text(row) for column in columns)]
        for rank, (name, row) in enumerate(zip(names, ranking.rows, strict=True), start=1)
    ]
    header = ["#", "layers", *(column.head for column in columns)]
    troubles = [
        f"{one.status}: `{one.candidate}` on {one.title}" + f": {one.reason}" * bool(one.reason)
        for one in lost(ranking)
    ]
    if more := len(troubles[:-MOST_LISTED]):
        troubles = [f"... {more} more, see --json", *troubles[-MOST_LISTED:]]
    notes = [*remarks(ranking.rows), *troubles, ceiling_note(ranking), ranking.lacking]
    part = Section(ranking.heading, header, rows, [*filter(None, notes)])
    text = text_table.lines(part, width or 10**6)
    return [cut("".join(piece for piece, _ in line).rstrip(), width) for line in text]
