"""Tables of numbers: a few columns per line, separated by spaces, tabs, commas or `::`.

What ratings and edge lists have in common. Lines that are empty, or begin with # or %, are read
over; so is a first line that has no numbers, the heading of a .csv file. Blocks of lines are parsed
by NumPy at once; where that fails they are read line by line, which finds the line to name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.loaders.lines import Block, parse_numbers, to_number, wrong

_COMMENT = re.compile(rb"^[ \t]*[#%][^\n]*", re.MULTILINE)
_DATE = re.compile(rb"\b\d{4}-\d\d-\d\d\b")
_SEPARATORS = bytes.maketrans(b",;\t\r", b"    ")
_ID_LIMIT = 2**53  # whole numbers below are exact in float64


def read_table(
    found: Iterable[Block], least: int, most: int
) -> Iterator[tuple[Block, NDArray[np.float64]]]:
    """Yield the rows of a file's blocks: the block, and its numbers (rows, columns) in float64.

    Args:
        found: blocks of one file, in order.
        least: columns that every line has at least.
        most: columns that are kept; further ones may hold anything.

    Returns:
        Arrays with `least` to `most` columns, equally many in all blocks.

    Raises:
        DataError: a line has too few columns, more or fewer than those before, or something else
            than finite numbers in those that are kept; the message names the line.
    """
    columns: int | None = None
    for block in found:
        if block.first_line == 1 and _is_heading(block):
            end_of_heading = block.text.index(b"\n") + 1
            block = Block(block.path, 2, block.text[end_of_heading:])
        table = _parse(block.text, columns)
        if table is None or table.shape[1] < least or not np.isfinite(table[:, :most]).all():
            table = _parse_lines(block, least, most, columns)
        if len(table):
            columns = table.shape[1]
            yield block, table[:, :most]


def line_of_row(block: Block, row: int) -> int:
    """The number of the line that a row of the block's table came from."""
    filled = [number for number, line in block.lines() if _words(line)]
    return filled[row]


def whole_ids(column: NDArray[np.float64], block: Block, what: str) -> NDArray[np.int64]:
    """A column of identifiers, or DataError with the line of one that is no whole number >= 0."""
    illegal = (column < 0) | (column >= _ID_LIMIT) | (column != np.floor(column))
    if illegal.any():
        row = int(np.argmax(illegal))
        line = line_of_row(block, row)
        wrong(block.path, line, f"{what} {column[row]:g}; wanted a whole number, 0 or more")
    return column.astype(np.int64)


def _is_heading(block: Block) -> bool:
    words = _words(block.text[: block.text.index(b"\n")])
    return bool(words) and all(to_number(word) is None for word in words)


def _parse(text: bytes, columns: int | None) -> NDArray[np.float64] | None:
    """All numbers as a table, or None unless every line has as many (`columns`, where given)."""
    if b"#" in text or b"%" in text:
        text = _COMMENT.sub(b"", text)
    if b"-" in text:
        text = _DATE.sub(b"0", text)
    text = text.replace(b"::", b" ").translate(_SEPARATORS)
    numbers = parse_numbers(text)
    if numbers is None:
        return None
    symbols = np.frombuffer(text, dtype=np.uint8)
    in_word = symbols > 32
    begins = np.flatnonzero(in_word & ~np.concatenate([[False], in_word[:-1]]))
    if len(begins) != len(numbers):
        return None
    per_line = np.bincount(np.cumsum(symbols == ord("\n"))[begins], minlength=1)
    width = int(per_line.max()) if columns is None else columns
    if not np.isin(per_line, (0, width)).all():
        return None
    return numbers.reshape(-1, max(width, 1))


def _parse_lines(block: Block, least: int, most: int, columns: int | None) -> NDArray[np.float64]:
    """The same, line by line; what is in the columns past `most` becomes NaN."""
    rows = []
    for number, line in block.lines():
        words = _words(line)
        if not words:
            continue
        if len(words) < least:
            wrong(block.path, number, f"{len(words)} column(s); wanted at least {least}")
        columns = columns or len(words)
        if len(words) != columns:
            wrong(block.path, number, f"{len(words)} columns after lines of {columns}")
        for word in words[:most]:
            value = to_number(word)
            if value is None or not np.isfinite(value):
                wrong(block.path, number, f"{word!r}; wanted a finite number")
        rows.append([to_number(word) for word in words[:most]] + [np.nan] * len(words[most:]))
    return np.array(rows, dtype=np.float64).reshape(-1, columns or least)


def _words(line: bytes) -> list[str]:
    if line.lstrip()[:1] in (b"#", b"%"):
        return []
    text = line.replace(b"::", b" ").translate(_SEPARATORS)
    return text.decode(errors="backslashreplace").split()
