"""Ratings from files of triplets, `USER ITEM RATING`, or in the Netflix prize's own form.

Triplets are separated by spaces, tabs, commas or `::`, and further columns (a time) are read over:
MovieLens' ratings.csv and ratings.dat, and most exports. The prize's files say `MOVIE:` on a line
and then `USER,RATING,DATE` on the lines that belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import Ratings
from mlxhog.classic.loaders.identifiers import renumber
from mlxhog.classic.loaders.lines import Block, blocks, to_number, wrong
from mlxhog.classic.loaders.table import line_of_row, read_table, whole_ids
from mlxhog.errors import ConfigError, DataError

_MOVIE = re.compile(rb"^(\d+):[ \t\r]*$", re.MULTILINE)
_DATE = re.compile(rb",\d{4}-\d\d-\d\d\b")
_MARK = -(2**60)


@dataclass(frozen=True)
class _Columns:
    """Entries with the identifiers of the file."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]


_Part = tuple[Block, NDArray[np.int64], _Columns]
"""A block, the rows of its table that are ratings, and those."""


def load_ratings(
    train: Path, test: Path | None = None, *, lowest: float = 1.0, highest: float = 5.0
) -> tuple[Ratings, Ratings | None]:
    """Read one file, or a training and a test file that name users and items alike.

    Users and items are numbered from 0 in the order of their identifiers, gaps closed.

    Args:
        train: triplets or the prize's form; `.gz` or `.bz2` if compressed.
        test: the same for test ratings.
        lowest: smallest legal rating.
        highest: largest legal rating.

    Raises:
        DataError: a file or a line is malformed, an identifier is no whole number, or a rating is
            outside its range; the message names the line.
    """
    read = [_read(path, lowest, highest) for path in (train, test) if path is not None]
    users, n_users = renumber([columns.users for columns in read])
    items, n_items = renumber([columns.items for columns in read])
    made = [
        Ratings(
            users=users[which],
            items=items[which],
            ratings=columns.ratings,
            n_users=n_users,
            n_items=n_items,
            lowest=lowest,
            highest=highest,
        )
        for which, columns in enumerate(read)
    ]
    return made[0], made[1] if test is not None else None


def _read(path: Path, lowest: float, highest: float) -> _Columns:
    is_prize = _MOVIE.match(next(blocks(path)).text) is not None
    parts = []
    for block, rows, columns in _prize(path) if is_prize else _triplets(path):
        outside = (columns.ratings < lowest) | (columns.ratings > highest)
        if outside.any():
            first = int(np.argmax(outside))
            found = f"rating {columns.ratings[first]:g}; wanted {lowest:g} .. {highest:g}"
            line = line_of_row(block, int(rows[first]))
            wrong(path, line, f"{found}. For another scale say --rating-range LOW,HIGH")
        parts.append(columns)
    if not sum(len(part.ratings) for part in parts):
        raise DataError(f"{path} has no ratings; wanted lines of USER ITEM RATING")
    return _Columns(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.ratings for part in parts]),
    )


def _triplets(path: Path) -> Iterator[_Part]:
    for block, table in read_table(blocks(path), least=3, most=3):
        columns = _Columns(
            whole_ids(table[:, 0], block, "user"),
            whole_ids(table[:, 1], block, "item"),
            _ratings(table[:, 2]),
        )
        yield block, np.arange(len(table)), columns


def _prize(path: Path) -> Iterator[_Part]:
    """The prize's form as a table: a line `7:` becomes a rating of item 7 that no scale has."""
    movie = 0
    for block, table in read_table(map(_marked, blocks(path)), least=2, most=2):
        ids = whole_ids(table[:, 0], block, "user or movie")
        opens = table[:, 1] == _MARK
        # Each row belongs to the last movie up to it, the first ones to that of the block before.
        last = np.maximum.accumulate(np.where(opens, np.arange(len(ids)), -1))
        movies = np.where(last >= 0, ids[last], movie)
        movie = int(movies[-1])
        rows = np.flatnonzero(~opens)
        yield block, rows, _Columns(ids[rows], movies[rows], _ratings(table[rows, 1]))


def _ratings(column: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # an infinity is outside of every range of ratings
        return column.astype(np.float32)


def _marked(block: Block) -> Block:
    text = _DATE.sub(b"", _MOVIE.sub(rb"\1,%d" % _MARK, block.text))
    return Block(block.path, block.first_line, text)


def parse_rating_range(text: str) -> tuple[float, float]:
    """Return the lowest and the highest legal rating of "LOW,HIGH".

    Raises:
        ConfigError: `text` is no such pair.
    """
    low, comma, high = text.partition(",")
    lowest, highest = to_number(low), to_number(high)
    if not comma or lowest is None or highest is None or not lowest < highest:
        raise ConfigError(f"--rating-range is {text!r}; wanted LOW,HIGH such as 1,5")
    return lowest, highest
