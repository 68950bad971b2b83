"""Files of ratings and of graphs: lines of two identifiers and a number.

Ratings are triplets `USER ITEM RATING`, separated by spaces, tabs, commas or `::`; further columns
(such as a time) are ignored. MovieLens' ratings.csv and ratings.dat and most exports have this
form. Files of the Netflix prize work too: they have a line `MOVIE:`, then lines `USER,RATING,DATE`
for this movie.

Graphs are edge lists `VERTEX VERTEX WEIGHT`, as in SNAP's and KONECT's files; without a third
column every edge has weight 1.
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
    TextBlock,
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


_Part = tuple[TextBlock, NDArray[np.int64], Entries]
"""A block, the rows of its table that are ratings, and these ratings."""


def load_ratings(
    train: Path, test: Path | None = None, *, lowest: float = 1.0, highest: float = 5.0
) -> tuple[Ratings, Ratings | None]:
    """Read one file, or a training and a test file with the same identifiers.

    Users and items are numbered from 0 without gaps, in the order of their identifiers.

    Args:
        train: triplets, or the form of the prize; may be a `.gz` or `.bz2` file.
        test: a file of test ratings in the same form.
        lowest: smallest legal rating.
        highest: largest legal rating.

    Raises:
        DataError: a file or a line is malformed, an identifier is not a whole number, or a rating
            is outside its range; the message names the line.
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
    """Read the ratings of one file; format and errors are those of `load_ratings`."""
    is_prize = _MOVIE.match(next(blocks(path)).text) is not None
    parts = []
    for block, rows, columns in _prize(path) if is_prize else _triplets(path):
        outside = (columns.ratings < lowest) | (columns.ratings > highest)
        if outside.any():
            first = int(np.argmax(outside))
            reason = f"rating {columns.ratings[first]:g}; wanted {lowest:g} .. {highest:g}"
            line = line_of_row(block, int(rows[first]))
            wrong(path, line, f"{reason}. For another scale give --rating-range LOW,HIGH")
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
    """Read the form of the prize as a table; a line `7:` becomes the row (7, `_MARK`)."""
    movie = 0
    for block, table in read_table(map(_marked, blocks(path)), least=2, most=2):
        ids = whole_ids(table[:, 0], block, "user or movie")
        opens = table[:, 1] == _MARK
        # A row belongs to the last movie above it; that of the first rows is in the block before.
        last = np.maximum.accumulate(np.where(opens, np.arange(len(ids)), -1))
        movies = np.where(last >= 0, ids[last], movie)
        movie = int(movies[-1])
        rows = np.flatnonzero(~opens)
        yield block, rows, Entries(ids[rows], movies[rows], _ratings(table[rows, 1]))


def _ratings(column: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # infinity is outside of every range of ratings
        return column.astype(np.float32)


def _marked(block: TextBlock) -> TextBlock:
    text = _PRIZE_DATE.sub(b"", _MOVIE.sub(rb"\1,%d" % _MARK, block.text))
    return TextBlock(block.path, block.first_line, text)


def parse_rating_range(text: str) -> tuple[float, float]:
    """Return the lowest and the highest legal rating of "LOW,HIGH".

    Raises:
        ConfigError: `text` is not such a pair.
    """
    low, comma, high = text.partition(",")
    lowest, highest = to_number(low), to_number(high)
    if not comma or lowest is None or highest is None or not lowest < highest:
        raise ConfigError(f"--rating-range is {text!r}; wanted LOW,HIGH such as 1,5")
    return lowest, highest


# -- graphs ----------------------------------------------------------------------------------------

MOST_LABELS = 4096
"""A limit, because every vertex stores one number per label."""
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TERMINALS_FORM = (
    "VERTEX=LABEL separated by commas, such as 0=0,33=1, or a file of VERTEX LABEL lines"
)


def load_graph(path: Path, terminals: str) -> Graph:
    """Read a graph; vertices are numbered from 0 without gaps, in the order of their names.

    Args:
        path: lines VERTEX VERTEX [WEIGHT] with whole numbers as names; may be a `.gz` or `.bz2`
            file.
        terminals: known labels: VERTEX=LABEL separated by commas, or a file of VERTEX LABEL lines.

    Raises:
        ConfigError: `terminals` is neither, names a vertex that is not in the graph, or has one
            label only.
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
        raise ConfigError(f"terminal {missing[0]} is not a vertex of {path}")
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
    """Return the names of both ends, and the weight, of each edge of a file.

    Raises:
        DataError: see `load_graph`.
    """
    heads, tails, weights = [], [], []
    for block, table in read_table(blocks(path), least=2, most=3):
        heads.append(whole_ids(table[:, 0], block, "vertex"))
        tails.append(whole_ids(table[:, 1], block, "vertex"))
        weights.append(table[:, 2] if table.shape[1] == 3 else np.ones(len(table)))
        for illegal, reason in (
            (heads[-1] == tails[-1], "an edge from a vertex to itself; leave it out"),
            (weights[-1] < 0, "a weight below 0; the cost of a cut is 0 or more"),
            (weights[-1] > _FLOAT32_MAX, "a weight that is infinite in float32"),
        ):
            if illegal.any():
                wrong(path, line_of_row(block, int(np.argmax(illegal))), reason)
    if not weights:
        raise DataError(f"{path} has no edges; wanted lines of VERTEX VERTEX [WEIGHT]")
    every = np.concatenate(weights).astype(np.float32)
    return np.concatenate(heads), np.concatenate(tails), every


def _terminal_labels(terminals: str) -> dict[int, int]:
    """The label of each terminal, by the vertex's name in the graph file."""
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
        raise ConfigError("--terminals has one label only; a cut needs two or more")
    return known


def _terminal(text: str) -> tuple[int, int]:
    vertex, equals, label = text.partition("=")
    if not (equals and vertex.strip().isdecimal() and label.strip().isdecimal()):
        raise ConfigError(f"--terminals has {text!r}; wanted {_TERMINALS_FORM}")
    return int(vertex), int(label)
