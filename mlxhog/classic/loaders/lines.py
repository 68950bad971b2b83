"""Text files as blocks of whole lines, compressed or not, each block knowing its line numbers.

A block is large enough for NumPy to parse it at once and small enough that a file of any size needs
little memory besides what is kept of it.
"""

from __future__ import annotations

import bz2
import gzip
import shlex
import zlib
from collections.abc import Iterator
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
class Block:
    """Whole lines of one file.

    Attributes:
        path: the file.
        first_line: number of the block's first line, from 1.
        text: the lines, each with its end.
    """

    path: Path
    first_line: int
    text: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line with its number, without its end."""
        return enumerate(self.text.removesuffix(b"\n").split(b"\n"), self.first_line)


def blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield a file's lines in order, without the byte order mark that some editors put first.

    `.gz` and `.bz2` are unpacked on the way.

    Raises:
        DataError: the file is missing, empty, unreadable, binary, or cut: its last line has no end,
            or its compressed stream has none. The message names the line.
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
            yield Block(path, line, text)
            line += text.count(b"\n")
    if rest:
        unpack = "unpack it and " if path.suffix in _PACKED else ""
        plain = shlex.quote(str(path.with_suffix("") if unpack else path))
        wrong(
            path,
            line,
            "the last line has no line end, so the file may be cut in the middle; if it is "
            f"complete, {unpack}add one: echo >> {plain}",
        )
    if line == 1:
        raise DataError(f"{path} is empty; wanted one example per line")


def wrong(path: Path, line: int, what: str) -> NoReturn:
    """Raise DataError about one line of a file."""
    raise DataError(f"{path}:{line}: {what}")


def parse_numbers(text: bytes) -> NDArray[np.float64] | None:
    """All white-space separated numbers, or None where something else is among them."""
    if not text.strip():
        return np.empty(0)
    try:
        return np.fromstring(text, dtype=np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
        return None


def to_number(word: str) -> float | None:
    """The number that a word stands for, or None: no 1_000, and no digits of other scripts."""
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
            f"{path} is cut or damaged after line {line} ({error}); fetch it again"
        ) from error
