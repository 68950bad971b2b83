"""The leaderboard as lines of text, as many columns of it as a terminal has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxhog.config.quantities import format_clock, format_count
from mlxhog.mad.report.board import score
from mlxhog.mad.report.leaderboard import (
    ceiling_note,
    fraction,
    has_validation,
    heads,
    order_note,
    status,
    troubles,
)
from mlxhog.mad.report.names import folded, short
from mlxhog.mad.report.standing import Standing
from mlxhog.mad.scores import Row
from mlxhog.report.streams import printable

_GAP = 2
_LAYERS_WIDTH = 20
"""Columns for the layers below which other columns are left out."""
TROUBLES = 5
"""Failed and diverged runs that are listed; the page and --json have all of them."""


@dataclass(frozen=True)
class _Column:
    head: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        return max(map(len, (self.head, *self.cells)))


def lines(standing: Standing, width: int | None = None, height: int | None = None) -> list[str]:
    """Return heading, table and notes.

    Args:
        standing: what to show.
        width: of the terminal; no line is longer. None for no limit: every column, whole layers.
        height: lines that there is room for; the last candidates are left out, and that is said.
    """
    notes = [
        *_told_troubles(standing),
        *filter(None, [ceiling_note(standing), order_note(standing), standing.lacking]),
    ]
    shown = list(standing.rows)
    if height is not None and len(shown) > (room := max(1, height - len(notes) - 4)):
        shown = shown[:room]
        notes.insert(0, f"... {len(standing.rows) - room} more candidates")
    found = [_heading(standing), *_table(shown, standing.tasks, width), *notes]
    return [_cut(printable(line), width) for line in found]


def _heading(standing: Standing) -> str:
    of = "" if standing.planned is None else f" of {standing.planned}"
    ends = [f"{n} {name}" for name, n in standing.statuses.items() if name != "done"]
    return "  ".join(
        [
            f"study {standing.study}",
            f"suite {standing.suite}",
            f"{len(standing.records)}{of} runs",
            f"{format_clock(standing.seconds)} of training",
            *ends,
        ]
    )


def _table(rows: Sequence[Row], tasks: Sequence[str], width: int | None) -> list[str]:
    if not rows:
        return []
    rank = _Column("#", [str(k + 1) for k in range(len(rows))])
    scored = _Column("score", [score(row.score, row.interval) for row in rows])
    scored_tasks = [
        _Column(head, [fraction(row.tasks.get(task)) for row in rows])
        for task, head in heads(tasks).items()
    ]
    validated = [_Column("val", [fraction(row.val_score) for row in rows])]
    groups = [
        [_Column("status", [status(row) for row in rows])],
        *([validated] if has_validation(rows) else []),
        scored_tasks,
        [_Column("params", [format_count(row.params) for row in rows])],
        [_Column("state", [format_count(row.state) for row in rows])],
        [_Column("time", [format_clock(row.seconds) for row in rows])],
    ]
    if all(row.status == "done" and not row.n_diverged + row.n_failed for row in rows):
        del groups[0]
    layers_width = max(len("layers"), *(len(row.candidate) for row in rows))
    kept = list(groups)
    if width is not None:
        kept = []
        left = width - rank.width - scored.width - 2 * _GAP
        whole = max(len("layers"), *(len(folded(row.candidate.split())) for row in rows))
        for group in groups:
            # what a candidate costs gives way to its whole name, folded
            essential = group[0].head in ("status", "val") or group is scored_tasks
            name = min(_LAYERS_WIDTH, whole) if essential else whole
            needed = sum(column.width + _GAP for column in group)
            if needed <= left - name:
                kept.append(group)
                left -= needed
        layers_width = min(layers_width, max(0, left))
    name_cells = (
        [row.candidate for row in rows]
        if width is None
        else [short(row.candidate, layers_width) for row in rows]
    )
    # the status reads best at the end of the line, though it is the first to get its place
    ordered = sorted(kept, key=lambda group: group[0].head == "status")
    numbers = [column for group in ordered for column in group]
    columns = [rank, _Column("layers", name_cells), scored, *numbers]
    return _aligned(columns)


def _aligned(columns: Sequence[_Column]) -> list[str]:
    left = ("layers", "status")
    widths = [column.width for column in columns]
    rows = zip(*([column.head, *column.cells] for column in columns), strict=True)
    gap = " " * _GAP
    return [
        gap.join(
            cell.ljust(width) if column.head in left else cell.rjust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in rows
    ]


def _told_troubles(standing: Standing) -> list[str]:
    told = troubles(standing)
    if len(told) <= TROUBLES:
        return told
    return [f"... {len(told) - TROUBLES} more, see --json", *told[-TROUBLES:]]


def _cut(text: str, width: int | None) -> str:
    if width is None or len(text) <= width:
        return text
    return text[: max(0, width - 1)] + "…"[:width]
