"""The leaderboard of a study as lines of text, CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from mlxhog.files.quantities import format_bytes, format_count, format_duration
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


def candidate(row: CandidateScore) -> dict[str, Any]:
    """Return a candidate's numbers as plain values."""
    return {
        "layers": row.candidate,
        **{name: getattr(row, name) for name in NUMBERS},
        "seeds": {str(seed): value for seed, value in row.seeds.items()},
        "tasks": dict(row.tasks),
        "settings": row.settings,
        "intervals": dict(row.intervals),
        "solved": dict(row.solved),
        "acc_token": dict(row.acc_token),
        "ceiling": dict(row.ceiling),
        "missing": list(row.missing),
    }


def to_csv(ranking: Ranking) -> str:
    """Return one line per candidate; an empty field is a missing number."""
    tasks = ranking.tasks
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    of_tasks = [f"{kind}.{task}" for kind in ("score", "acc_token", "solved") for task in tasks]
    writer.writerow(["rank", "layers", *NUMBERS, "missing", *of_tasks])
    for rank, row in enumerate(ranking.rows, start=1):
        values = [getattr(row, name) for name in NUMBERS]
        own = [row.tasks.get(task) for task in tasks]
        token = [row.acc_token.get(task) for task in tasks]
        texts = [cell(value) if isinstance(value, str) else value for value in values]
        solved = [row.solved.get(task) for task in tasks]
        writer.writerow(
            [rank, cell(row.candidate), *texts, len(row.missing), *own, *token, *solved]
        )
    return out.getvalue()


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


def cells(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Return the leaderboard as a header and a row for every candidate, with full numbers."""
    val = ["val"] if has_validation(ranking.rows) else []
    fixed = ["fixed"] if has_fixed(ranking.rows) else []
    costs = ["params", "state bytes", "time", "status"]
    header = ["#", "layers", "score", *fixed, *val, *ranking.tasks, *costs]
    rows = [
        [
            str(rank),
            row.candidate,
            score(row.score, row.interval),
            *(accuracy(row.fixed_score) for _ in fixed),
            *(accuracy(row.val_score) for _ in val),
            *(accuracy(row.tasks.get(task)) for task in ranking.tasks),
            f"{row.params:,}",
            f"{row.state_bytes:,}",
            format_duration(row.seconds),
            status(row),
        ]
        for rank, row in enumerate(ranking.rows, start=1)
    ]
    return header, rows


def _markdown_table(ranking: Ranking) -> list[str]:
    header, rows = cells(ranking)
    ruler = ["---:", "---", *["---:"] * (len(header) - 3), "---"]
    for row in rows:
        row[1] = f"`{_text(row[1].replace('`', ' ').replace('|', ' '))}`"
    return [f"| {' | '.join(row)} |" for row in (header, ruler, *rows)]


def has_validation(rows: Sequence[CandidateScore]) -> bool:
    """Whether any candidate has a score on validation rows."""
    return any(row.val_score is not None for row in rows)


def has_fixed(rows: Sequence[CandidateScore]) -> bool:
    """Whether any candidate has a score at the fixed step size beside the best."""
    return any(row.fixed_score is not None for row in rows)


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


@dataclass(frozen=True)
class _Column:
    head: str
    cells: Sequence[str]
    is_text: bool = False

    @property
    def width(self) -> int:
        return max(map(len, (self.head, *self.cells)))


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
    text = [_heading(ranking), *_table(shown, ranking.tasks, width), *notes]
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


def _table(rows: Sequence[CandidateScore], tasks: Sequence[str], width: int | None) -> list[str]:
    if not rows:
        return []
    rank = _Column("#", [str(k + 1) for k in range(len(rows))])
    scored = _Column("score", [score(row.score, row.interval) for row in rows])
    statuses = [_Column("status", [status(row) for row in rows], is_text=True)]
    fixed = [_Column("fixed", [accuracy(row.fixed_score) for row in rows])]
    validated = [_Column("val", [accuracy(row.val_score) for row in rows])]
    scored_tasks = [
        _Column(find(task).short, [accuracy(row.tasks.get(task)) for row in rows]) for task in tasks
    ]
    is_plain = all(row.status == "done" and not row.n_diverged + row.n_failed for row in rows)
    essential = [
        *([] if is_plain else [statuses]),
        *([fixed] if has_fixed(rows) else []),
        *([validated] if has_validation(rows) else []),
        scored_tasks,
    ]
    costs = [
        [_Column("params", [format_count(row.params) for row in rows])],
        [_Column("state", [format_bytes(row.state_bytes) for row in rows])],
        [_Column("time", [format_duration(row.seconds) for row in rows])],
    ]
    groups = [*essential, *costs]
    names = [row.candidate for row in rows]
    if width is not None:
        room = width - rank.width - scored.width - 2 * len(GAP)
        whole = max(len("layers"), *(len(folded(name.split())) for name in names))
        # its folded name has priority over its costs
        rooms = [(group, min(_LAYERS_WIDTH, whole)) for group in essential]
        groups = []
        for group, name_width in [*rooms, *((group, whole) for group in costs)]:
            needed = sum(column.width + len(GAP) for column in group)
            if needed <= room - name_width:
                groups.append(group)
                room -= needed
        longest = max(len("layers"), *map(len, names))
        names = [short(name, min(longest, max(0, room))) for name in names]
    # the status is the last column, though the first to get its place
    ordered = sorted(groups, key=lambda group: group is statuses)
    numbers = [column for group in ordered for column in group]
    columns = [rank, _Column("layers", names, is_text=True), scored, *numbers]
    return aligned(
        [column.head for column in columns],
        list(zip(*(column.cells for column in columns), strict=True)),
        words=[k for k, column in enumerate(columns) if column.is_text],
    )


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
