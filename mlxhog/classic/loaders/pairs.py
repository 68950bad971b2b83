"""Files of ratings and of graphs: lines of two identifiers and a number.

Ratings are triplets `USER ITEM RATING`, separated by spaces, tabs, commas or `::`; further columns
(a time) are read over: MovieLens' ratings.csv and ratings.dat, and most exports. Or they have the
form of the Netflix prize, which says `MOVIE:` on a line and then `USER,RATING,DATE` on the lines
that belong to it.

Graphs are edge lists `VERTEX VERTEX WEIGHT`, the form of SNAP's and KONECT's files; without a third
column every edge weighs 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import Graph, Ratings
from mlxhog.classic.loaders.text import (
    Block,
    blocks,
    line_of_row,
    read_table,
    renumber,
    to_number,
    whole_ids,
    wrong,
)
from mlxhog.errors import ConfigError, DataError

# -- ratings ---------------------------------------------------------------------------------------

_MOVIE = re.compile(rb"^(\d+):[ \t\r]*$", re.MULTILINE)
_PRIZE_DATE = re.compile(rb",\d{4}-\d\d-\d\d\b")
_MARK = -(2**60)


@dataclass(frozen=True)
class Entries:
    """Ratings with the identifiers of the file."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]


_Part = tuple[Block, NDArray[np.int64], Entries]
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
    files = [read_ratings(path, lowest, highest) for path in (train, test) if path is not None]
    users, user_ids = renumber([columns.users for columns in files])
    items, item_ids = renumber([columns.items for columns in files])
    data_sets = [
        Ratings(
            users=users[which],
            items=items[which],
            ratings=columns.ratings,
            n_users=len(user_ids),
            n_items=len(item_ids),
            lowest=lowest,
            highest=highest,
            user_ids=user_ids,
            item_ids=item_ids,
        )
        for which, columns in enumerate(files)
    ]
    return data_sets[0], data_sets[1] if test is not None else None


def read_ratings(path: Path, lowest: float = -math.inf, highest: float = math.inf) -> Entries:
    """Read the ratings of one file; `load_ratings` says what they look like, and its errors."""
    is_prize = _MOVIE.match(next(blocks(path)).text) is not None
    parts = []
    for block, rows, columns in _prize(path) if is_prize else _triplets(path):
        outside = (columns.ratings < lowest) | (columns.ratings > highest)
        if outside.any():
            first = int(np.argmax(outside))
            what = f"rating {columns.ratings[first]:g}; wanted {lowest:g} .. {highest:g}"
            line = line_of_row(block, int(rows[first]))
            wrong(path, line, f"{what}. For another scale say --rating-range LOW,HIGH")
        parts.append(columns)
    if not sum(len(part.ratings) for part in parts):
        raise DataError(f"{path} has no ratings; wanted lines of USER ITEM RATING")
    return Entries(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.ratings for part in parts]),
    )


def _triplets(path: Path) -> Iterator[_Part]:
    for block, table in read_table(blocks(path), least=3, most=3):
        columns = Entries(
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
        yield block, rows, Entries(ids[rows], movies[rows], _ratings(table[rows, 1]))


def _ratings(column: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # an infinity is outside of every range of ratings
        return column.astype(np.float32)


def _marked(block: Block) -> Block:
    text = _PRIZE_DATE.sub(b"", _MOVIE.sub(rb"\1,%d" % _MARK, block.text))
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


# -- graphs ----------------------------------------------------------------------------------------

MOST_LABELS = 4096
"""Every vertex has a number for each label."""
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TERMINALS_FORM = (
    "VERTEX=LABEL by commas, such as 0=0,33=1, or a file with VERTEX LABEL on each line"
)


def load_graph(path: Path, terminals: str) -> Graph:
    """Read a graph; vertices are numbered from 0 in the order of their names, gaps closed.

    Args:
        path: lines VERTEX VERTEX [WEIGHT] of whole numbers as names; `.gz` and `.bz2` are unpacked.
        terminals: the labels that are known: VERTEX=LABEL by commas, or a file of such lines.

    Raises:
        ConfigError: `terminals` is neither, names a vertex that is not in the graph, or gives all
            of its vertices the same label.
        DataError: a line is malformed, joins a vertex with itself, or has a weight below 0; the
            message names the line.
    """
    *columns, weights = read_edges(path)
    known = _terminal_labels(terminals)
    if max(known.values()) >= MOST_LABELS:
        raise ConfigError(
            f"--terminals has the label {max(known.values())}; number them from 0, "
            f"{MOST_LABELS} at most"
        )
    (from_0, to_0), names = renumber(columns)
    missing = sorted(known.keys() - set(names.tolist()))
    if missing:
        raise ConfigError(f"terminal {missing[0]} is no vertex of {path}")
    return Graph(
        heads=from_0,
        tails=to_0,
        weights=weights,
        n_vertices=len(names),
        terminals={int(np.searchsorted(names, name)): label for name, label in known.items()},
        labels=max(known.values()) + 1,
        vertex_ids=names,
    )


def read_edges(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return both ends of each edge of a file, by name, and its weight.

    Raises:
        DataError: see `load_graph`.
    """
    heads, tails, weights = [], [], []
    for block, table in read_table(blocks(path), least=2, most=3):
        heads.append(whole_ids(table[:, 0], block, "vertex"))
        tails.append(whole_ids(table[:, 1], block, "vertex"))
        weights.append(table[:, 2] if table.shape[1] == 3 else np.ones(len(table)))
        for illegal, what in (
            (heads[-1] == tails[-1], "an edge from a vertex to itself; leave it out"),
            (weights[-1] < 0, "a weight below 0; a cut can only cost something"),
            (weights[-1] > _FLOAT32_MAX, "a weight that is infinite in float32"),
        ):
            if illegal.any():
                wrong(path, line_of_row(block, int(np.argmax(illegal))), what)
    if not weights:
        raise DataError(f"{path} is a graph with no edges; wanted lines of VERTEX VERTEX [WEIGHT]")
    every = np.concatenate(weights).astype(np.float32)
    return np.concatenate(heads), np.concatenate(tails), every


def _terminal_labels(terminals: str) -> dict[int, int]:
    """The label of each terminal, by the name that the file gives it."""
    if Path(terminals).is_file():
        path = Path(terminals)
        pairs = [
            (int(vertex), int(label))
            for block, table in read_table(blocks(path), least=2, most=2)
            for vertex, label in zip(
                whole_ids(table[:, 0], block, "vertex"),
                whole_ids(table[:, 1], block, "label"),
                strict=True,
            )
        ]
    else:
        pairs = [_terminal(text) for text in terminals.split(",")]
    known = dict(pairs)
    if len(set(known.values())) < 2:
        raise ConfigError("--terminals names one label only; wanted two or more to cut between")
    return known


def _terminal(text: str) -> tuple[int, int]:
    vertex, equals, label = text.partition("=")
    if not (equals and vertex.strip().isdecimal() and label.strip().isdecimal()):
        raise ConfigError(f"--terminals has {text!r}; wanted {_TERMINALS_FORM}")
    return int(vertex), int(label)
