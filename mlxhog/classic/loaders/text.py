"""Text files as blocks of whole lines, and tables of numbers in them.

NumPy parses a block at once. A block is small, so a large file needs little memory besides its
parsed rows. Each block knows its line numbers.

Ratings and edge lists are tables. Empty lines and lines that begin with # or % are skipped, and so
is a first line without numbers, the heading of a .csv file. A block that NumPy cannot parse is read
line by line, so that the error can name the line.
"""

from __future__ import annotations

import bz2
import gzip
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import DataError

BLOCK_BYTES = 8 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PACKED = (".gz", ".bz2")


@dataclass(frozen=True)
class TextBlock:
    """Whole lines of one file.

    Attributes:
        path: the file.
        first_line: number of the block's first line, from 1.
        text: the lines, each with its line end.
    """

    path: Path
    first_line: int
    text: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield every line with its number, without its line end."""
        return enumerate(self.text.removesuffix(b"\n").split(b"\n"), self.first_line)


def blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[TextBlock]:
    """Yield a file's lines in order, without a byte order mark at the begin.

    Files `.gz` and `.bz2` are decompressed.

    Raises:
        DataError: the file is missing, empty, unreadable, binary or truncated: its last line has no
            line end, or its compressed stream stops early. The message names the line.
    """
    line, rest = 1, b""
    with _open(path) as file:
        while piece := _read(path, file, block_bytes, line):
            if line == 1 and not rest:
                piece = piece.removeprefix(_BYTE_ORDER_MARK)
            if b"\0" in piece:
                raise DataError(f"{path} is binary: it has a zero byte after line {line}")
            end = piece.rfind(b"\n") + 1
            if not end:
                rest += piece
                continue
            text, rest = rest + piece[:end], piece[end:]
            yield TextBlock(path, line, text)
            line += text.count(b"\n")
    if rest:
        unpack = "unpack it and " if path.suffix in _PACKED else ""
        plain = shlex.quote(str(path.with_suffix("") if unpack else path))
        wrong(
            path,
            line,
            "the last line has no line end, so the file may be truncated; if it is complete, "
            f"{unpack}add one: echo >> {plain}",
        )
    if line == 1:
        raise DataError(f"{path} is empty; wanted one example per line")


def wrong(path: Path, line: int, what: str) -> NoReturn:
    """Raise DataError about one line of a file."""
    raise DataError(f"{path}:{line}: {what}")


def parse_numbers(text: bytes) -> NDArray[np.float64] | None:
    """All numbers of a text separated by white space, or None if a word is not a number."""
    if not text.strip():
        return np.empty(0)
    try:
        return np.fromstring(text, dtype=np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
        return None


def to_number(word: str) -> float | None:
    """The value of a word, or None if it is not a number; 1_000 and non-ASCII digits are not."""
    if "_" in word or not word.isascii():
        return None
    try:
        return float(word)
    except ValueError:
        return None


def _open(path: Path) -> BinaryIO:
    try:
        if path.suffix == ".gz":
            return cast(BinaryIO, gzip.open(path))
        if path.suffix == ".bz2":
            return cast(BinaryIO, bz2.open(path))
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(path: Path, file: BinaryIO, count: int, line: int) -> bytes:
    try:
        return file.read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or damaged after line {line} ({error}); download it again"
        ) from error


# -- tables: a few columns of numbers per line, separated by spaces, tabs, commas or `::` ----------

_COMMENT_LINE = re.compile(rb"^[ \t]*[#%][^\n]*", re.MULTILINE)
_DATE = re.compile(rb"\b\d{4}-\d\d-\d\d\b")
_SEPARATORS = bytes.maketrans(b",;\t\r", b"    ")
_ID_LIMIT = 2**53  # smaller whole numbers are exact in float64


def read_table(
    source: Iterable[TextBlock], least: int, most: int
) -> Iterator[tuple[TextBlock, NDArray[np.float64]]]:
    """Yield each block of a file with its numbers, (rows, columns) float64.

    Args:
        source: blocks of one file, in order.
        least: least number of columns of a line.
        most: number of columns to return; further ones may hold anything.

    Returns:
        Arrays with `least` to `most` columns, the same number in all blocks.

    Raises:
        DataError: a line has too few columns, another number of columns than the lines before, or
            a word that is not a finite number in a returned column; the message names the line.
    """
    columns: int | None = None
    for block in source:
        if block.first_line == 1 and _is_heading(block):
            end_of_heading = block.text.index(b"\n") + 1
            block = TextBlock(block.path, 2, block.text[end_of_heading:])
        table = _parse_table(block.text, columns)
        if table is None or table.shape[1] < least or not np.isfinite(table[:, :most]).all():
            table = _parse_table_lines(block, least, most, columns)
        if len(table):
            columns = table.shape[1]
            yield block, table[:, :most]


def line_of_row(block: TextBlock, row: int) -> int:
    """The line number of a row of the block's table."""
    filled = [number for number, line in block.lines() if _split_words(line)]
    return filled[row]


def whole_ids(column: NDArray[np.float64], block: TextBlock, what: str) -> NDArray[np.int64]:
    """A column of identifiers; DataError names the line of one that is not a whole number >= 0."""
    illegal = (column < 0) | (column >= _ID_LIMIT) | (column != np.floor(column))
    if illegal.any():
        row = int(np.argmax(illegal))
        line = line_of_row(block, row)
        wrong(block.path, line, f"{what} {column[row]:g}; wanted a whole number, 0 or more")
    return column.astype(np.int64)


def _is_heading(block: TextBlock) -> bool:
    words = _split_words(block.text[: block.text.index(b"\n")])
    return bool(words) and all(to_number(word) is None for word in words)


def _parse_table(text: bytes, columns: int | None) -> NDArray[np.float64] | None:
    """The numbers as a table, or None if lines differ in length (from `columns`, unless None)."""
    if b"#" in text or b"%" in text:
        text = _COMMENT_LINE.sub(b"", text)
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


def _parse_table_lines(
    block: TextBlock, least: int, most: int, columns: int | None
) -> NDArray[np.float64]:
    """Parse a table line by line; columns past `most` become NaN."""
    rows = []
    for number, line in block.lines():
        words = _split_words(line)
        if not words:
            continue
        if len(words) < least:
            wrong(block.path, number, f"{len(words)} column(s); wanted at least {least}")
        columns = columns or len(words)
        if len(words) != columns:
            wrong(block.path, number, f"{len(words)} columns, but the lines before have {columns}")
        for word in words[:most]:
            value = to_number(word)
            if value is None or not np.isfinite(value):
                wrong(block.path, number, f"{word!r}; wanted a finite number")
        rows.append([to_number(word) for word in words[:most]] + [np.nan] * len(words[most:]))
    return np.array(rows, dtype=np.float64).reshape(-1, columns or least)


def _split_words(line: bytes) -> list[str]:
    if line.lstrip()[:1] in (b"#", b"%"):
        return []
    text = line.replace(b"::", b" ").translate(_SEPARATORS)
    return text.decode(errors="backslashreplace").split()


# -- identifiers -----------------------------------------------------------------------------------

_ROOM = 8  # largest length of the table of numbers, per identifier


def renumber(
    columns: Sequence[NDArray[np.int64]],
) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """Number the identifiers of some columns from 0, in ascending order.

    Args:
        columns: each (entries,) int64, >= 0.

    Returns:
        The numbers of each column, int32; and the identifier of each number, ascending.
    """
    largest = max(int(column.max()) for column in columns)
    if largest > _ROOM * sum(len(column) for column in columns) + 1_000_000:
        known, numbers = np.unique(np.concatenate(columns), return_inverse=True)
        ends = np.cumsum([len(column) for column in columns])[:-1]
        return np.split(numbers.astype(np.int32), ends), known
    occurs = np.zeros(largest + 1, dtype=np.bool_)
    for column in columns:
        occurs[column] = True
    number = np.cumsum(occurs, dtype=np.int32) - np.int32(1)
    return [number[column] for column in columns], np.flatnonzero(occurs)
