"""The leaderboard of a study: one table, as text, on a page, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlxhog.base.quantities import format_duration
from mlxhog.mad.report.board import folded, score
from mlxhog.mad.report.ranking import WITHIN, Ranking, equal_cost
from mlxhog.mad.scores import LOST, CandidateScore
from mlxhog.mad.tasks import find
from mlxhog.report.table import Section

NUMBERS = (
    "score", "interval", "val_score", "params", "state", "state_bytes", "seconds", "status",
    "n_runs", "n_diverged", "n_failed", "settings", "tasks", "intervals", "acc_token", "ceiling",
    "seeds", "missing",
)  # fmt: skip


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
                **{f"rank_equal_{name}": own.get(row.candidate) for name, own in equal.items()},
            }
            for row in ranking.rows
        ],
        "troubles": [dict(zip(TROUBLE, one, strict=True)) for one in troubles(ranking)],
        "facts": dict(ranking.facts),
    }


class Column(NamedTuple):
    """A column of the board, after rank and layers."""

    head: str  # its name
    text: Callable[[CandidateScore], str]  # its cell
    # the accuracy that colors its cell on a page
    heat: Callable[[CandidateScore], float | None] = lambda row: None


def columns(ranking: Ranking) -> list[Column]:
    """Return the columns of the board after rank and layers; every form of it has these."""
    by_val = any(row.val_score is not None for row in ranking.rows)
    val = Column("val", lambda row: _accuracy(row.val_score))
    return [
        Column("score", lambda row: score(row.score, row.interval)),
        *([val] if by_val else []),
        *(_task_column(task) for task in ranking.tasks),
        Column("params", lambda row: f"{row.params:,}"),
        Column("state bytes", lambda row: f"{row.state_bytes:,}"),
        Column("time", lambda row: format_duration(row.seconds)),
        Column("status", status),
    ]


def _task_column(task: str) -> Column:
    def value(row: CandidateScore) -> float | None:
        return row.tasks.get(task)

    return Column(find(task).short, lambda row: _accuracy(value(row)), value)


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


NOTE = (
    "score: mean of acc_macro of the test rows over the tasks, ± 95 % interval over seeds; params: "
    "parameters of the layers; state: what the layers keep per sequence, in float32; time: all runs"
)


def status(row: CandidateScore) -> str:
    """Return the status of a candidate, with its missing and lost runs."""
    counts = {
        "missing": len(row.missing), "diverged": row.n_diverged, "failed": row.n_failed,
    }  # fmt: skip
    parts = [f"{n} {name}" for name, n in counts.items() if n and name != row.status]
    return ", ".join([row.status, *parts])


TROUBLE = ("status", "layers", "run", "reason", "host")


def troubles(ranking: Ranking) -> list[tuple[str, ...]]:
    """Return the runs that count with a score of 0, by the columns `TROUBLE`."""
    return [
        (one.status, one.candidate, one.title, one.reason, one.host)
        for one in ranking.records
        if one.status in LOST
    ]


def ceiling_note(ranking: Ranking) -> str:
    """Return the tasks whose best possible score is below 1; "" without any."""
    lowest: dict[str, float] = {}
    for row in ranking.rows:
        for task, value in row.ceiling.items():
            lowest[task] = min(value, lowest.get(task, 1.0))
    below = [f"{task} {value:.3f}" for task, value in lowest.items() if value < 1]
    return f"best possible score, measured on the rows: {', '.join(below)}" if below else ""


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


MOST_LISTED = 5
"""Most failed and diverged runs; --json has all."""


def section(ranking: Ranking) -> Section:
    """Return heading, table and notes; layers are folded, as `--layers` takes them."""
    shown = columns(ranking)
    rows = [
        [str(rank), folded(row.layers), *(column.text(row) for column in shown)]
        for rank, row in enumerate(ranking.rows, start=1)
    ]
    lost = [
        f"{kind}: `{layers}` on {run}" + f": {reason}" * bool(reason)
        for kind, layers, run, reason, _ in troubles(ranking)
    ]
    if more := len(lost[:-MOST_LISTED]):
        lost = [f"... {more} more, see --json", *lost[-MOST_LISTED:]]
    notes = [*remarks(ranking.rows), *lost, ceiling_note(ranking), ranking.lacking]
    header = ["#", "layers", *(column.head for column in shown)]
    return Section(ranking.heading, header, rows, [*filter(None, notes)])
