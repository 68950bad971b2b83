"""Limits of what a file from outside may cost: bytes read, digits, nesting, characters shown.

A text within these limits is read in bounded time, and quoting any part of it needs little memory.
They are far above what our own programs write.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 1 << 28
"""Of a file of JSON or JSON lines that is read as a whole."""
MOST_CONFIG_BYTES = 1 << 20
"""Of a YAML file, which takes seconds per MiB, and of whatever else people write by hand."""
MOST_DEPTH = 64
"""Lists and mappings inside each other."""
MOST_DIGITS = 100
"""Of a number; one of that length is still a float."""
MOST_SHOWN = 100
"""Characters of a value in a message."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file that has to fit into memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than `most` bytes; little more was read.
    """
    with path.open("rb") as file:
        return read_all(file, most)


def read_all(file: BinaryIO, most: int) -> bytes:
    """Return the rest of an open file, as `read_bytes` does; it may be one that unpacks."""
    pieces, size = [], 0
    while piece := file.read(1 << 20):  # a larger one would take its memory before it is there
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise ValueError(f"more than {most:,} bytes")
    return b"".join(pieces)


def read_text(path: Path, most: int = MOST_CONFIG_BYTES) -> str:
    """Return the text of a small file.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than `most` bytes, or is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from error


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """Return `repr(value)`, shortened to about `most` characters, whatever the value is.

    >>> shown([1, "two"])
    "[1, 'two']"
    >>> shown("x" * 1000, most=20)
    "'xxxxxxx...xxxxxxxx'"
    """
    text = _SHORT.repr(value)
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-(most - 3 - half) :]}"


def said(error: BaseException) -> str:
    """Return what another package's exception says: one line, bounded, without escape sequences."""
    words = "".join(c if c.isprintable() else " " for c in str(error)[: 10 * MOST_SHOWN]).split()
    text = " ".join(words) or type(error).__name__
    return text if len(text) <= 2 * MOST_SHOWN else f"{text[: 2 * MOST_SHOWN]}..."


def check_plain(value: object) -> None:
    """Refuse what JSON can spell and nothing after it can handle.

    Raises:
        ValueError: lists and mappings are nested more than `MOST_DEPTH` deep, a number is infinite
            (1e999), or a text holds half a character (a lone surrogate), which can be neither
            written nor printed.
    """
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return
    raise ValueError(f"lists or mappings are nested more than {MOST_DEPTH} deep")


def _inside(value: object) -> Iterator[Any]:
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("a text holds half a character") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large")
    elif isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother = 4, MOST_SHOWN
        self.maxstring = 10 * MOST_SHOWN  # `shown` cuts; this bounds the work
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 16

    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 0.30103
        return repr(x) if digits < MOST_DIGITS else f"a whole number of {digits:.0f} digits"


_SHORT = _Short()
