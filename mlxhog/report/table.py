"""Sections of aligned columns, in color on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from mlxhog.report.streams import console, printable

STYLES = {
    "PASS": "green",
    "WARN": "yellow",
    "FAIL": "bold red",
    "lossy": "yellow",
    **dict.fromkeys(("lucky", "absent"), "dim"),
}
_WRAPPED = ("what", "found", "writers", "why")
"""Columns that may take several lines on a narrow terminal."""


class Failure(str):
    """A note that says what failed: shown in red."""


@dataclass(frozen=True)
class Section:
    """A heading, columns, and lines below them.

    Attributes:
        title: "" for none.
        header: names of the columns.
        rows: as wide as the header; a cell in `STYLES` is shown in its color.
        notes: whole lines.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = field(default=())


def show(parts: Iterable[Section], stream: TextIO, *, plain: bool) -> None:
    """Write sections to a stream: aligned text, or tables in color."""
    if plain:
        stream.write("\n\n".join(_text(part) for part in parts) + "\n")
        return
    from rich.table import Table  # 50 ms that a command in a pipe need not pay
    from rich.text import Text

    screen = console(stream)
    for part in parts:
        screen.print()
        if part.title:
            screen.print(Text(part.title, style="bold"))
        if part.rows:
            table = Table(box=None, pad_edge=False, header_style="dim")
            for name in part.header:
                table.add_column(name, overflow="fold", no_wrap=name not in _WRAPPED)
            for row in part.rows:
                table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
            screen.print(table)
        for note in part.notes:
            screen.print(Text(note, style="bold red" if isinstance(note, Failure) else ""))


def _text(part: Section) -> str:
    lines = [part.title] if part.title else []
    if part.rows:
        rows = [[printable(cell) for cell in row] for row in part.rows]  # also of line ends
        columns = list(zip(part.header, *rows, strict=True))
        widths = [max(map(len, column)) for column in columns[:-1]] + [0]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (part.header, *rows)
        ]
    return "\n".join([*lines, *part.notes])
