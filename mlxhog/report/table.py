"""Tables as text: sections that fit the window, in color on a terminal, or as plain lines."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from mlxhog.report.streams import WIDTH, console, printable, wrapped

STYLES = {
    "PASS": "green",
    "WARN": "yellow",
    "FAIL": "bold red",
    "unclear": "yellow",
    "absent": "dim",
}
_WRAPPED = ("what", "found", "writers", "why", "at")
"""Columns that may take several lines."""
_LEAST = 16  # least width of such a column in a table that is too wide
GAP = "  "


class FailureNote(str):
    """A note about a failure, shown in red."""


class AnswerNote(str):
    """A note with the conclusion, shown in bold."""


@dataclass(frozen=True)
class Section:
    """A heading, columns, and lines below them.

    Attributes:
        title: heading, "" for none.
        header: names of the columns.
        rows: cells of each row; a cell whose text is in `STYLES` has that color.
        notes: lines below the table.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = field(default=())


Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""


def show(parts: Iterable[Section], stream: TextIO, *, plain: bool) -> None:
    """Write sections to a stream, as text that fits the window, in color unless `plain`."""
    if plain:
        width = shutil.get_terminal_size((WIDTH, 0)).columns if stream.isatty() else WIDTH
        text = ("\n".join(map(_text, lines(part, width))) for part in parts)
        stream.write("\n\n".join(text) + "\n")
        return
    from rich.text import Text  # takes 50 ms, so only colored output imports it

    screen = console(stream)
    for number, part in enumerate(parts):
        if number:
            screen.print()
        for line in lines(part, screen.width):
            screen.print(Text.assemble(*line), no_wrap=True, crop=False)


def lines(part: Section, width: int) -> Iterator[Line]:
    """Yield the lines of a section, no wider than `width` unless one word is.

    In a table that is too wide, cells of the columns in `_WRAPPED` take several lines. If it is
    still too wide, the last columns come below the others, with the names of the rows repeated.
    """
    text_width = min(width, WIDTH)
    if part.title:
        yield from ([(line, "bold")] for line in wrapped(part.title, text_width))
    if part.rows:
        rows = [[printable(cell) for cell in row] for row in part.rows]  # line ends become spaces
        columns = list(zip(part.header, *rows, strict=True))
        widths = _widths(columns, width)
        for block in _blocks(part.header, widths, width):
            of = [widths[k] for k in block]
            yield from _row([part.header[k] for k in block], of, header=True)
            for row in rows:
                yield from _row([row[k] for k in block], of)
    for note in part.notes:
        style = "bold" * isinstance(note, AnswerNote)
        style = "bold red" if isinstance(note, FailureNote) else style
        yield from ([(line, style)] for line in wrapped(note, text_width))


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """Widths of the columns; if their sum is too large, headings and some cells are broken."""
    natural = [max(map(len, column)) for column in columns]
    room = width - len(GAP) * (len(columns) - 1)
    if sum(natural) <= room:
        return natural
    widths = [
        max(max(map(len, cells)), max(map(len, name.split()), default=0))
        for name, *cells in columns
    ]
    may_break = sorted(
        (k for k, column in enumerate(columns) if column[0] in _WRAPPED), key=lambda k: widths[k]
    )
    room -= sum(widths) - sum(widths[k] for k in may_break)
    for number, k in enumerate(may_break):
        widths[k] = min(widths[k], max(_LEAST, room // (len(may_break) - number)))
        room -= widths[k]
    return widths


def _blocks(header: Sequence[str], widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the columns of each part of a table; each part begins with the names of the rows."""
    first = next((k for k, name in enumerate(header) if name), 0) if not header[0] else 0
    names = list(range(first + 1))
    block = list(names)
    for k in range(len(names), len(widths)):
        if sum(widths[j] + len(GAP) for j in block) + widths[k] > width and block != names:
            yield block
            block = list(names)
        block.append(k)
    yield block


def _row(cells: Sequence[str], widths: Sequence[int], *, header: bool = False) -> Iterator[Line]:
    pieces = [
        textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]
        for cell, width in zip(cells, widths, strict=True)
    ]
    for number in range(max(map(len, pieces))):
        line = []
        for cell, width, parts in zip(cells, widths, pieces, strict=True):
            text = parts[number] if number < len(parts) else ""
            line.append((text.ljust(width) + GAP, "dim" if header else STYLES.get(cell, "")))
        yield line


def _text(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()


# -- plain lines ---------------------------------------------------------------------------------


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Container[int] = (0,)
) -> list[str]:
    """Return the lines of a table.

    Args:
        header: names of the columns.
        rows: cells of each row.
        words: columns of words, aligned to the left; the others are aligned to the right.
    """
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        GAP.join(
            cell.ljust(width) if k in words else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def cut(text: str, width: int) -> str:
    """Return a text, cut at its end to at most `width` characters.

    >>> cut("20261121-224342-a-long-name", 20)
    '20261121-224342-a...'
    """
    return text if len(text) <= width else f"{text[: width - 3]}..."
