"""Tables as text: sections that fit the window, in color on a terminal, or as plain lines."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TextIO

from mlxhog.report.streams import WIDTH, printable, verbatim, wrapped

BOLD, DIM, YELLOW, RED = "1", "2", "33", "1;31"
STYLES = {"PASS": "32", "WARN": YELLOW, "FAIL": RED, "unclear": YELLOW, "absent": DIM}
"""Text of a cell -> its style, as a code of terminals."""
_WRAPPED = ("what", "found", "writers", "why", "at")
"""Columns that may take several lines."""
_NUMBER = re.compile(r"-|[-+]?[\d.,]+").fullmatch
_LEAST = 16  # least width of such a column in a table that is too wide
GAP = "  "


class FailureNote(str):
    """A note about a failure, shown in red."""


class AnswerNote(str):
    """A note with the conclusion, shown in bold."""


@dataclass(frozen=True)
class Section:
    """A heading, columns, and lines below them."""

    title: str  # "" for none
    header: Sequence[str] = ()  # names of the columns
    rows: Sequence[Sequence[str]] = ()  # cells of each row; one in `STYLES` has that color
    notes: Sequence[str] = ()  # lines below the table


FORMATS = ("text", "csv", "latex", "markdown")
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}",  # else the end of the row before would take them
}  # fmt: skip


def _no_commas(number: re.Match[str]) -> str:
    return number[0].replace(",", "")


def exported(part: Section, kind: str) -> str:
    """Return the table of a section as CSV, LaTeX (a tabular) or Markdown, without its notes.

    Text from users stays text: special characters are escaped, and a cell of CSV that a spreadsheet
    would run as a formula begins with an apostrophe.
    """
    table = [
        [" ".join(printable(cell).split()) for cell in row] for row in (part.header, *part.rows)
    ]
    if not part.header:
        return ""
    if kind == "csv":
        for row in table:
            plain = (re.sub(r"^([+-]?\d{1,3})((,\d{3})+)(?=\.|$)", _no_commas, x) for x in row)
            row[:] = [
                "'" + cell if cell[:1] in "=+-@" and cell and not _NUMBER(cell) else cell
                for cell in plain
            ]
        csv.writer(out := io.StringIO(), lineterminator="\n").writerows(table)
        return out.getvalue().rstrip("\n")
    if kind == "markdown":
        escaped = [[re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", cell) for cell in row] for row in table]
        escaped.insert(1, ["---"] * len(part.header))
        return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
    begin, *rows = (
        " & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in row) + r" \\"
        for row in table
    )
    frame = rf"\begin{{tabular}}{{{'l' * len(part.header)}}}"
    return "\n".join([frame, r"\hline", begin, r"\hline", *rows, r"\hline", r"\end{tabular}"])


def show(parts: Iterable[Section], stream: TextIO, *, plain: bool) -> None:
    """Write sections to a stream, as text that fits the window, in color unless `plain`."""
    width = shutil.get_terminal_size((WIDTH, 0)).columns if stream.isatty() else WIDTH
    colored = not plain and not os.environ.get("NO_COLOR")
    texts = ("\n".join(lines(part, width, colored=colored)) for part in parts)
    verbatim(stream).write("\n\n".join(texts) + "\n")  # `lines` has cleaned the text


def lines(part: Section, width: int, *, colored: bool = False) -> Iterator[str]:
    """Yield the lines of a section, no wider than `width` unless one word is.

    Columns of numbers are aligned to the right, others to the left. In a table that is too wide,
    cells of the columns in `_WRAPPED` take several lines. If it is still too wide, the last columns
    come below the others, with the names of the rows repeated.
    """

    def painted(text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if colored and style and text else text

    def row(cells: Sequence[str], block: Sequence[int], style: str = "") -> Iterator[str]:
        pieces = [
            textwrap.wrap(cells[k], widths[k], break_on_hyphens=False)
            if len(cells[k]) > widths[k]
            else [cells[k]]
            for k in block
        ]
        for texts in zip_longest(*pieces, fillvalue=""):
            line = ""
            for k, text in zip(block, texts, strict=True):
                room = " " * (widths[k] - len(text))
                shown = painted(text, style or STYLES.get(cells[k], ""))
                line += (room + shown if k in of_numbers else shown + room) + GAP
            yield line.rstrip()

    text_width = min(width, WIDTH)
    if part.title:
        yield from (painted(line, BOLD) for line in wrapped(part.title, text_width))
    if part.rows:
        rows = [[printable(cell) for cell in one] for one in part.rows]  # line ends become spaces
        columns = list(zip(part.header, *rows, strict=True))
        widths = _widths(columns, width)
        of_numbers = {k for k, (_, *cells) in enumerate(columns) if all(map(_NUMBER, cells))}
        for block in _blocks(part.header, widths, width):
            yield from row(part.header, block, DIM)
            for one in rows:
                yield from row(one, block)
    for note in part.notes:
        style = RED if isinstance(note, FailureNote) else BOLD * isinstance(note, AnswerNote)
        yield from (painted(line, style) for line in wrapped(note, text_width))


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
    names = list(range(1 + next((k for k, name in enumerate(header) if name), 0)))
    block = list(names)
    for k in range(len(names), len(widths)):
        if sum(widths[j] + len(GAP) for j in block) + widths[k] > width and block != names:
            yield block
            block = list(names)
        block.append(k)
    yield block


def cut(text: str, width: int) -> str:
    """Return a text, cut at its end to at most `width` characters.

    >>> cut("20261121-224342-a-long-name", 20)
    '20261121-224342-a...'
    """
    return text if len(text) <= width else f"{text[: width - 3]}..."
