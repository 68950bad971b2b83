"""Tables as text: sections that fit the window, in color on a terminal."""

import csv
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from mlxhog.display.streams import WIDTH, printable, verbatim, wrapped

BOLD, DIM, YELLOW, RED = "bold", "dim", "yellow", "bold red"
STYLES = {"PASS": "green", "WARN": YELLOW, "FAIL": RED, "inconclusive": YELLOW, "absent": DIM}
"""Text of a cell -> its style, as rich names it."""
_WRAPPED = (
    "what",
    "found",
    "writers",
    "why",
    "at",
    "not checked",
)  # columns that may take several lines
_NUMBER = re.compile(r"-|[-+]?[\d.,]+(?: ± [\d.,]+)?").fullmatch
_MIN_WIDTH = 16  # of such a column in a table that is too wide
_GAP = 2  # columns of a terminal between two columns of a table
_SCREEN = 1 << 20  # columns that no cell fills


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
    "±": r"$\pm$", "[": "{[}", "*": "{*}",  # else the end of the row before would take them
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
    sides = ["r" if all(map(_NUMBER, column[1:])) else "l" for column in zip(*table, strict=True)]
    if kind == "markdown":
        escaped = [[re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", cell) for cell in row] for row in table]
        escaped.insert(1, ["---:" if side == "r" else "---" for side in sides])
        return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
    begin, *rows = (
        " & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in row) + r" \\"
        for row in table
    )
    frame = rf"\begin{{tabular}}{{{''.join(sides)}}}"
    return "\n".join([frame, r"\hline", begin, r"\hline", *rows, r"\hline", r"\end{tabular}"])


def show(parts: Iterable[Section], stream: TextIO, *, plain: bool) -> None:
    """Write sections to a stream, as text that fits the window, in color unless `plain`."""
    width = shutil.get_terminal_size((WIDTH, 0)).columns if stream.isatty() else WIDTH
    colored = not plain and not os.environ.get("NO_COLOR")
    texts = ("\n".join(lines(part, width, colored=colored)) for part in parts)
    verbatim(stream).write("\n\n".join(texts) + "\n")  # `lines` has cleaned the text


def lines(part: Section, width: int, *, colored: bool = False) -> Iterator[str]:
    """Yield the lines of a section, no wider than `width` unless one word is.

    Columns of numbers are aligned to the right. In a table that is too wide, headings and cells of
    the columns in `_WRAPPED` take several lines; if that is not enough, the last columns come below
    the others, with the names of the rows repeated.
    """
    from rich.console import Console  # takes 50 ms, so only a table imports it
    from rich.table import Table
    from rich.text import Text

    screen = Console(
        file=(text := io.StringIO()), width=_SCREEN, force_terminal=colored, force_jupyter=False,
        color_system="standard" if colored else None, markup=False, emoji=False, _environ={},
    )  # fmt: skip
    for line in wrapped(part.title, min(width, WIDTH)) if part.title else ():
        screen.print(Text(line, BOLD))
    rows = [[printable(cell) for cell in one] for one in part.rows]  # line ends become spaces
    columns = list(zip(part.header, *rows, strict=True)) if rows else []
    for block in _blocks(columns, width):
        table = Table(box=None, padding=(0, _GAP, 0, 0), header_style=DIM)
        for k, least in block.items():
            table.add_column(
                part.header[k],
                justify="right" if all(map(_NUMBER, columns[k][1:])) else "left",
                overflow="fold",
                min_width=least - _GAP,
                width=None if part.header[k] in _WRAPPED else least - _GAP,
            )
        for row in rows:
            table.add_row(*(Text(row[k], STYLES.get(row[k], "")) for k in block))
        screen.print(table, width=max(width + _GAP, sum(block.values())))
    for note in part.notes:
        style = RED if isinstance(note, FailureNote) else BOLD * isinstance(note, AnswerNote)
        for line in wrapped(note, min(width, WIDTH)):
            screen.print(Text(line, style))
    yield from map(str.rstrip, text.getvalue().splitlines())


def _blocks(columns: Sequence[Sequence[str]], width: int) -> Iterator[dict[int, int]]:
    """Yield the columns of each part of a table with their minimum widths, gaps included."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) + _GAP for column in columns]
    if sum(widths) > width + _GAP:  # break headings, and cells that may be broken
        widths = [
            _GAP + max([*map(cell_len, name.split()), min(max(map(cell_len, cells)), most)])
            for name, *cells in columns
            for most in [_MIN_WIDTH if name in _WRAPPED else _SCREEN]
        ]
    names = 1 + next((k for k, (name, *_) in enumerate(columns) if name), 0)
    block = first = dict(enumerate(widths[:names]))
    for k, least in [*enumerate(widths)][names:]:
        if sum(block.values()) + least > width + _GAP and block != first:
            yield block
            block = first
        block = block | {k: least}
    if block:
        yield block


def cut(text: str, width: int) -> str:
    """Return a text, cut at its end to at most `width` characters.

    >>> cut("20261121-224342-a-long-name", 20)
    '20261121-224342-a...'
    """
    return text if len(text) <= width else f"{text[: width - 3]}..."
