"""The leaderboard of a study as lines of text, CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from mlxhog.base.quantities import format_bytes, format_count, format_duration
from mlxhog.mad.report.board import accuracy, cut, folded, score, short, styled
from mlxhog.mad.report.ranking import WITHIN, Ranking, equal_cost
from mlxhog.mad.scores import LOST, CandidateScore
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.tasks import find
from mlxhog.report.streams import cell, printable
from mlxhog.report.table import GAP, aligned

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


def to_json(ranking: Ranking) -> dict[str, Any]:
    """Return the whole ranking as plain values; scores and accuracies are in [0, 1]."""
    equal = {"params": equal_cost(ranking.rows, "params")}
    equal["state"] = equal_cost(ranking.rows, "state_bytes")
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
                **candidate(row),
                **{f"rank_equal_{name}": own.get(row.candidate) for name, own in equal.items()},
            }
            for row in ranking.rows
        ],
        "troubles": [
            {
                "layers": record.candidate,
                "run": record.title,
                "status": record.status,
                "reason": record.reason,
                "host": record.host,
            }
            for record in lost(ranking)
        ],
        "facts": dict(ranking.facts),
    }


NUMBERS = (
    "score", "interval", "fixed_score", "val_score", "params", "state", "state_bytes", "seconds",
    "status", "n_runs", "n_diverged", "n_failed",
)  # fmt: skip
OF_TASKS = {"score": "tasks", "acc_token": "acc_token", "solved": "solved"}
"""Column of CSV, for each task -> field of a candidate."""


def candidate(row: CandidateScore) -> dict[str, Any]:
    """Return a candidate's numbers as plain values."""
    return {
        "layers": row.candidate,
        **{name: getattr(row, name) for name in NUMBERS},
        "seeds": {str(seed): value for seed, value in row.seeds.items()},
        "settings": row.settings,
        **{
            name: dict(getattr(row, name))
            for name in ("tasks", "intervals", "solved", "acc_token", "ceiling")
        },
        "missing": list(row.missing),
    }


def to_csv(ranking: Ranking) -> str:
    """Return one line per candidate; an empty field is a missing number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    of_tasks = [(name, field, task) for name, field in OF_TASKS.items() for task in ranking.tasks]
    own = [f"{name}.{task}" for name, _, task in of_tasks]
    writer.writerow(["rank", "layers", *NUMBERS, "missing", *own])
    for rank, values in enumerate(map(candidate, ranking.rows), start=1):
        numbers = [values[name] for name in ("layers", *NUMBERS)]
        texts = [cell(value) if isinstance(value, str) else value for value in numbers]
        scored = [values[field].get(task) for _, field, task in of_tasks]
        writer.writerow([rank, *texts, len(values["missing"]), *scored])
    return out.getvalue()


@dataclass(frozen=True)
class Column:
    """A column of the board, after rank and layers.

    Attributes:
        head: its name.
        text: its cell.
        brief: its name and its cell on a terminal; None for the same.
        heat: the accuracy that colors its cell on a page.
        words: whether it is aligned to the left.
    """

    head: str
    text: Callable[[CandidateScore], str]
    brief: tuple[str, Callable[[CandidateScore], str]] | None = None
    heat: Callable[[CandidateScore], float | None] = lambda row: None
    words: bool = False


def table(ranking: Ranking) -> list[Column]:
    """Return the columns of the board after rank and layers; every form of it has these."""
    scored = [("fixed", "fixed_score"), ("val", "val_score")]
    shown = [one for one in scored if any(getattr(row, one[1]) is not None for row in ranking.rows)]
    return [
        Column("score", lambda row: score(row.score, row.interval)),
        *(Column(head, partial(_accuracy_of, field)) for head, field in shown),
        *(_task_column(task) for task in ranking.tasks),
        Column(
            "params",
            lambda row: f"{row.params:,}",
            ("params", lambda row: format_count(row.params)),
        ),
        Column(
            "state bytes",
            lambda row: f"{row.state_bytes:,}",
            ("state", lambda row: format_bytes(row.state_bytes)),
        ),
        Column("time", lambda row: format_duration(row.seconds)),
        Column("status", status, words=True),
    ]


def _accuracy_of(field: str, row: CandidateScore) -> str:
    return accuracy(getattr(row, field))


def _task_column(task: str) -> Column:
    def text(row: CandidateScore) -> str:
        return accuracy(row.tasks.get(task))

    return Column(task, text, (find(task).short, text), lambda row: row.tasks.get(task))


def to_markdown(ranking: Ranking) -> str:
    """Return a heading, a table, and notes about missing and lost runs."""
    lines = [_text(f"## {ranking.study}: suite {ranking.suite}"), ""]
    if ranking.lacking:
        lines += [f"**{ranking.lacking}.**", ""]
    lines += _markdown_table(ranking) if ranking.rows else []
    notes = [f"- {name}: {value}" for name, value in ranking.facts]
    notes += [f"- {note}" for note in (NOTE, *remarks(ranking.rows))]
    notes += [f"- {note}" for note in (ceiling_note(ranking),) if note]
    notes += [f"- {trouble}" for trouble in troubles(ranking)]
    return "\n".join([*lines, "", *map(_text, notes)]).strip() + "\n"


def _text(line: str) -> str:
    """Return a line with escaped HTML, which Markdown would pass on."""
    return escape(printable(line), quote=False)


NOTE = (
    "score: mean of acc_macro of the test rows over the tasks, ± 95 % interval over seeds; fixed: "
    "at the suite's own step size; params: parameters of the layers; state: what the layers keep "
    "per sequence, in float32; time: all runs"
)


def remarks(rows: Sequence[CandidateScore]) -> list[str]:
    """Return the order at equal parameters and at equal state, and steps to the solution.

    The steps are those of `CandidateScore.solved`, of the first few candidates.
    """
    places = {row.candidate: f"#{rank}" for rank, row in enumerate(rows, start=1)}
    notes = []
    for cost, name in (("params", "parameters"), ("state_bytes", "state bytes")):
        alike = [places[candidate] for candidate in equal_cost(rows, cost)]
        if len(rows) > 1 and alike:
            others = f", before {', '.join(alike[1:])}" if alike[1:] else " alone"
            notes.append(f"at equal {name} (within {WITHIN:.0%}): {alike[0]}{others}")
    for rank, row in enumerate(rows[:MOST_LISTED], start=1):
        steps = [(find(task).short, step) for task, step in row.solved.items() if step is not None]
        if steps:
            texts = (f"{task} at step {step:,}" for task, step in steps)
            notes.append(f"#{rank} solved {', '.join(texts)}")
    return notes


def _markdown_table(ranking: Ranking) -> list[str]:
    columns = table(ranking)
    lines = [["#", "layers", *(column.head for column in columns)]]
    lines.append(["---:", "---", *("---" if column.words else "---:" for column in columns)])
    for rank, row in enumerate(ranking.rows, start=1):
        name = _text(row.candidate.replace("`", " ").replace("|", " "))
        lines.append([str(rank), f"`{name}`", *(column.text(row) for column in columns)])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def status(row: CandidateScore) -> str:
    """Return the status of a candidate, with its missing and lost runs."""
    parts = [row.status]
    if row.missing:
        parts.append(f"{len(row.missing)} missing")
    if row.n_diverged and row.status != "diverged":
        parts.append(f"{row.n_diverged} diverged")
    if row.n_failed and row.status != "failed":
        parts.append(f"{row.n_failed} failed")
    return ", ".join(parts)


def troubles(ranking: Ranking) -> list[str]:
    """Return a line for every run that counts as 0, with its reason."""
    return [
        f"{record.status}: `{record.candidate}` on {record.title}"
        + (f": {record.reason}" if record.reason else "")
        for record in lost(ranking)
    ]


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


_LAYERS_WIDTH = 20
"""Least columns of the layers, before other columns are left out."""
MOST_LISTED = 5
"""Most failed and diverged runs, and candidates with their steps; --json has all."""


def lines(ranking: Ranking, width: int | None = None, height: int | None = None) -> list[str]:
    """Return heading, table and notes.

    Args:
        ranking: of the study.
        width: longest line; None for every column and whole layers.
        height: most lines, without remarks; a note counts the candidates that are left out.
    """
    notes = [
        *([] if height is not None else remarks(ranking.rows)),
        *_listed_troubles(ranking),
        *filter(None, [ceiling_note(ranking), ranking.lacking]),
    ]
    shown = list(ranking.rows)
    if height is not None and len(shown) > (room := max(1, height - len(notes) - 4)):
        shown = shown[:room]
        notes.insert(0, f"... {len(ranking.rows) - room} more candidates")
    text = [_heading(ranking), *_table(ranking, shown, width), *notes]
    return [cut(printable(line), width) for line in text]


def _heading(ranking: Ranking) -> str:
    of = "" if ranking.planned is None else f" of {ranking.planned}"
    ends = [f"{n} {name}" for name, n in ranking.statuses.items() if name != "done"]
    return "  ".join(
        [
            f"study {ranking.study}",
            f"suite {ranking.suite}",
            f"{len(ranking.records)}{of} runs",
            f"{format_duration(ranking.seconds)} of training",
            *ends,
        ]
    )


def _table(ranking: Ranking, rows: Sequence[CandidateScore], width: int | None) -> list[str]:
    """Return the lines of the table; in a narrow one some columns are left out."""
    if not rows:
        return []
    columns = [
        (head, [cell_of(row) for row in rows], column)
        for column in table(ranking)
        for head, cell_of in (column.brief or (column.head, column.text),)
    ]
    if all(row.status == "done" and not row.n_diverged + row.n_failed for row in rows):
        columns.pop()  # the status
    names = [row.candidate for row in rows]
    if width is not None:
        whole = max(len("layers"), *(len(folded(name.split())) for name in names))
        room, kept = width - len(str(len(rows))) - len(GAP), {"score"}
        for heads in _groups(ranking):
            group = [one for one in columns if one[2].head in heads]
            needed = sum(max(map(len, (head, *own))) + len(GAP) for head, own, _ in group)
            # a folded name has priority over the costs
            least = whole if heads[0] in COSTS else min(_LAYERS_WIDTH, whole)
            if heads == ["score"] or needed <= room - least:
                kept |= set(heads)
                room -= needed
        columns = [one for one in columns if one[2].head in kept]
        longest = max(len("layers"), *map(len, names))
        names = [short(name, min(longest, max(0, room))) for name in names]
    ranks = [str(rank) for rank in range(1, len(rows) + 1)]
    texts = zip(ranks, names, *(own for _, own, _ in columns), strict=True)
    words = [1, *(k for k, one in enumerate(columns, start=2) if one[2].words)]
    return aligned(["#", "layers", *(head for head, _, _ in columns)], [*texts], words=words)


COSTS = ("params", "state bytes", "time")


def _groups(ranking: Ranking) -> list[list[str]]:
    """Return the heads of columns that stay or go together, the most important first."""
    return [["score"], ["status"], ["fixed"], ["val"], [*ranking.tasks], *([one] for one in COSTS)]


def _listed_troubles(ranking: Ranking) -> list[str]:
    lines_of_troubles = troubles(ranking)
    if len(lines_of_troubles) <= MOST_LISTED:
        return lines_of_troubles
    return [
        f"... {len(lines_of_troubles) - MOST_LISTED} more, see --json",
        *lines_of_troubles[-MOST_LISTED:],
    ]


class LiveLeaderboard:
    """A renderable leaderboard, with the columns and candidates that fit."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a line of text each."""
        heading, *rest = lines(self._ranking, options.max_width, console.height)
        yield styled(heading, "bold")
        for number, text in enumerate(rest):
            yield styled(text, "" if number or not self._ranking.rows else "dim")
