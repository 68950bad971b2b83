"""Tables of plain text no wider than a terminal, and curves in one line of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

GAP = "  "
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#@"
"""For a stream that cannot write `BLOCKS`."""


def aligned(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: int = 1,
    width: int | None = None,
    least: Mapping[int, int] | None = None,
) -> list[str]:
    """Return the lines of a table.

    Args:
        header: names of the columns.
        rows: as wide as the header.
        words: so many columns are words, aligned to the left; numbers are aligned to the right.
        width: of the terminal; None is as wide as it gets.
        least: column -> characters to which its cells may be cut where it is too wide, in the order
            in which columns are cut.
    """
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    excess = 0 if width is None else sum(widths) + len(GAP) * (len(widths) - 1) - width
    for column, fewest in (least or {}).items():
        less = max(min(excess, widths[column] - max(fewest, len(header[column]))), 0)
        widths[column] -= less
        excess -= less
    return [
        GAP.join(
            cut(cell, width).ljust(width) if k < words else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def cut(text: str, width: int) -> str:
    """Return the beginning of a text that is longer than so many characters.

    >>> cut("20261121-224342-a-long-name", 20)
    '20261121-224342-a...'
    """
    return text if len(text) <= width else f"{text[: width - 3]}..."


def cut_path(text: str, width: int) -> str:
    """Return the end of a path that is longer than so many characters.

    >>> cut_path("/home/someone/notes/letter.txt", 20)
    '.../notes/letter.txt'
    """
    return text if len(text) <= width else f"...{text[len(text) - width + 3 :]}"


def sparkline(
    values: NDArray[np.float64],
    width: int,
    *,
    low: float | None = None,
    high: float | None = None,
    encoding: str | None = "utf-8",
) -> str:
    """Draw numbers in one line, a character for the mean of each part of them.

    Args:
        values: to draw; a part of nothing but gaps (NaN) is blank.
        width: characters at most.
        low: number at the bottom; None is the least mean.
        high: number at the top; None is the greatest.
        encoding: of the stream that the line is for.

    >>> sparkline(np.array([8.0, 4.0, 2.0, 1.0]), 4)
    '█▄▂▁'
    """
    parts = [part[~np.isnan(part)] for part in np.array_split(values, min(width, len(values)) or 1)]
    means = np.array([part.mean() if len(part) else math.nan for part in parts])
    known = means[~np.isnan(means)]
    if not len(known):
        return ""
    bottom = float(known.min()) if low is None else low
    span = max((float(known.max()) if high is None else high) - bottom, 1e-12)
    signs = BLOCKS if _writes(BLOCKS, encoding) else ASCII
    levels = np.clip((means - bottom) / span, 0.0, 1.0) * (len(signs) - 1)
    return "".join(" " if math.isnan(level) else signs[round(level)] for level in levels.tolist())


def _writes(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
