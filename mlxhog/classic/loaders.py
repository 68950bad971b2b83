"""Files of data: svmlight text, rating triplets, and edge lists.

An error names the file, the line and the reason.

svmlight (RCV1, the LIBSVM collection)   LABEL FEATURE:VALUE ... # COMMENT; a `qid:` is ignored
ratings (MovieLens' csv and dat, ...)    USER ITEM RATING, further columns are ignored
graphs (SNAP, KONECT)                    VERTEX VERTEX [WEIGHT]

Columns are separated by spaces, tabs, commas or `::`. Empty lines and what follows # or % are
skipped, and so is a first line of a table without a digit. Files `.gz` and `.bz2` are unpacked.
"""

from __future__ import annotations

import bz2
import gzip
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import reading
from mlxhog.classic.datasets import Graph, LabelKind, Ratings, SparseRows
from mlxhog.errors import ConfigError, DataError

HELD_OUT_SHARE = 0.2
MOST_BYTES = 1 << 33
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def held_out(data: SparseRows, seed: int) -> tuple[SparseRows, SparseRows]:
    """Split off a random fifth for testing; the same for the same seed.

    Raises:
        DataError: there are fewer than two examples.
    """
    n = data.n_rows
    if n < 2:
        raise DataError(f"{n} example cannot be split; name a file of test data with --test-data")
    order = np.random.default_rng([seed, 0x7E57]).permutation(n)
    n_test = max(1, int(n * HELD_OUT_SHARE))
    return data.take(np.sort(order[n_test:])), data.take(np.sort(order[:n_test]))


# -- text ------------------------------------------------------------------------------------------

_COMMENT = re.compile(r"[#%].*|(?<=\s)qid:\d+(?=\s)")
_SPACES = str.maketrans(",;\t\r", "    ")


@dataclass(frozen=True)
class _Lines:
    """The lines of a file that have data, without comments, and their numbers from 1."""

    path: Path
    form: str
    texts: list[str]
    numbers: list[int]

    def refuse(self, at: int, reason: str = "") -> NoReturn:
        """Refuse a line."""
        reason = reason or f"{self.texts[at].strip()[:80]!r}; wanted {self.form}"
        raise DataError(f"{self.path}:{self.numbers[at]}: {reason}")

    def check(
        self, wrong: NDArray[np.bool_], reason: Callable[[int], str], of: NDArray[Any] | None = None
    ) -> None:
        """Refuse the first line with a wrong entry; entry k is of line `of[k]`, or of line k."""
        if wrong.any():
            at = int(np.argmax(wrong))
            self.refuse(at if of is None else int(of[at]), reason(at))

    def table(self, least: int, most: int) -> Float64:
        """The lines as finite numbers, (lines, columns): as many columns as the first one has."""
        columns = min(most, len(self.texts[0].split()))
        if columns < least:
            self.refuse(0)
        table = _table(self.texts, columns)
        if table is None:
            self.refuse(
                next(k for k, one in enumerate(self.texts) if _table([one], columns) is None)
            )
        self.check(np.logical_not(np.isfinite(table).all(axis=1)), lambda _: "")
        return table

    def ids(self, column: Float64, what: str) -> Int64:
        """A column of whole numbers, which float64 has exactly."""
        self.check(
            (column < 0) | (column >= 2**53) | (column != np.floor(column)),
            lambda row: f"{what} {column[row]:g}; wanted a whole number, 0 or more",
        )
        return column.astype(np.int64)


def _table(texts: list[str], columns: int) -> Float64 | None:
    """The first columns of some lines; None if a line has fewer, or another word."""
    try:
        return np.loadtxt(texts, usecols=range(columns), ndmin=2, comments=None)
    except ValueError:
        return None


def _read(path: Path, form: str) -> _Lines:
    """Read a text file of lines of a form; those of a table may have other separators.

    Raises:
        DataError: the file is missing, truncated or binary, or has no data.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            text = reading.read_all(file, MOST_BYTES).decode("utf-8-sig", "backslashreplace")
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if "\0" in text:
        raise DataError(f"{path} is binary: it has a zero byte")
    texts = [_COMMENT.sub("", line) for line in text.split("\n")]
    if form != ROW:
        texts = [line.translate(_SPACES).replace("::", " ") for line in texts]
        texts[0] = texts[0] if re.search(r"\d", texts[0]) else ""
    numbers = [number for number, line in enumerate(texts, start=1) if line.strip()]
    if not numbers:
        raise DataError(f"{path} has no data; wanted lines of {form}")
    return _Lines(path, form, [texts[number - 1] for number in numbers], numbers)


def _floats(text: str) -> Float64:
    """The words as numbers; fewer if a word is none."""
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            return np.fromstring(text, sep=" ")
    except ValueError:
        return np.empty(0)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


# -- svmlight --------------------------------------------------------------------------------------

ROW = "LABEL FEATURE:VALUE ..., features in ascending order"
_ROW = re.compile(r"\s*[^\s:_]+(?:\s+[^\s:_]+:[^\s:_]+)+\s*")
MOST_FEATURES = 1 << 28


def parse_label_map(text: str | None) -> dict[float, float] | None:
    """Return the map from old to new labels, such as "1=-1,2=+1"; None if they do not change.

    Raises:
        ConfigError: `text` is not a list of pairs OLD=NEW separated by commas.
    """
    if text is None:
        return None
    mapping: dict[float, float] = {}
    for pair in text.split(","):
        old, new = (_number(word) for word in (pair + "=").split("=")[:2])
        if old is None or new is None or pair.count("=") != 1 or old in mapping:
            raise ConfigError(
                f"--labels has {pair!r}; wanted OLD=NEW separated by commas, each label once, such "
                "as 0=-1,1=+1"
            )
        mapping[old] = new
    return mapping


def load_svmlight(
    train: Path,
    test: Path | None = None,
    *,
    labels: Mapping[float, float] | None = None,
    label_kind: LabelKind = "signs",
) -> tuple[SparseRows, SparseRows | None]:
    """Read one file, or a training and a test file with the same numbers of features.

    Features are numbered from 1, as in the format, unless one of the files has a feature 0.

    Args:
        train: svmlight text.
        test: a file of test rows in the same form.
        labels: new label for each label in the files; None keeps them.
        label_kind: required kind of the labels after this map.

    Raises:
        DataError: a file or a line is malformed; the message names the line.
    """
    files = [_svmlight(path, labels, label_kind == "signs") for path in (train, test) if path]
    base = min(1, *(int(features.min()) for _, _, features, _ in files))
    n_features = max(int(features.max()) for _, _, features, _ in files) + 1 - base
    rows = [
        SparseRows(
            indptr=np.concatenate([[0], np.cumsum(lengths)]),
            indices=(features - base).astype(np.int32),
            values=values.astype(np.float32),
            labels=row_labels.astype(np.float32),
            n_features=n_features,
            label_kind=label_kind,
        )
        for row_labels, lengths, features, values in files
    ]
    return rows[0], rows[1] if test is not None else None


def _svmlight(
    path: Path, labels: Mapping[float, float] | None, signs: bool
) -> tuple[Float64, Int64, Float64, Float64]:
    """Labels and lengths of all rows, then their features and values."""
    lines = _read(path, ROW)
    for at, text in enumerate(lines.texts):
        if not _ROW.fullmatch(text):
            lines.refuse(at)
    lengths = np.array([text.count(":") for text in lines.texts], np.int64)
    texts = [text.replace(":", " ") for text in lines.texts]
    numbers = _floats(" ".join(texts))
    if len(numbers) != (1 + 2 * lengths).sum():
        each = zip(texts, 1 + 2 * lengths, strict=True)
        lines.refuse(next(k for k, (text, n) in enumerate(each) if len(_floats(text)) != n))
    begins = np.cumsum(1 + 2 * lengths) - 1 - 2 * lengths
    old = numbers[begins]
    features, values = np.delete(numbers, begins).reshape(-1, 2).T
    rows = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.diff(features, prepend=-1.0)
    steps[np.cumsum(lengths) - lengths] = 1
    new = old if labels is None else np.array([labels.get(one, np.nan) for one in old.tolist()])
    lines.check(
        (features < 0) | (features != np.floor(features)) | ~(features < MOST_FEATURES),
        lambda at: f"feature {features[at]:g}; wanted a whole number below 2^28",
        rows,
    )
    lines.check(
        steps <= 0,
        lambda at: (
            f"feature {features[at]:g} after {features[at - 1]:g}; sort the features of "
            "each line, and sum the values of equal ones"
        ),
        rows,
    )
    lines.check(
        ~(np.abs(values) <= np.finfo(np.float32).max),
        lambda at: f"feature {features[at]:g} has value {values[at]:g}; wanted a finite float32",
        rows,
    )
    lines.check(
        np.abs(new) != 1 if signs else ~np.isfinite(new),
        lambda row: (
            f"label {old[row]:g}; wanted {'-1 or +1' if signs else 'a finite number'}. Map the "
            "labels, such as --labels 0=-1,1=+1"
        ),
    )
    return new, lengths, features, values


# -- tables: ratings and graphs --------------------------------------------------------------------

_PAIR = re.compile(r"\s*(\d+)\s*=\s*(\d+)\s*", re.ASCII)


def load_ratings(
    train: Path, test: Path | None = None, *, lowest: float = 1.0, highest: float = 5.0
) -> tuple[Ratings, Ratings | None]:
    """Read one file, or a training and a test file with the same identifiers.

    Users and items are numbered from 0 without gaps, in the order of their identifiers.

    Args:
        train: triplets.
        test: a file of test ratings in the same form.
        lowest: smallest legal rating.
        highest: largest legal rating.

    Raises:
        DataError: a file or a line is malformed, an identifier is not a whole number, or a rating
            is outside its range; the message names the line.
    """
    parts = [_ratings(path, lowest, highest) for path in (train, test) if path is not None]
    users, items, ratings = (np.concatenate(column) for column in zip(*parts, strict=True))
    user_ids, users = np.unique(users, return_inverse=True)
    item_ids, items = np.unique(items, return_inverse=True)
    every = Ratings(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=ratings.astype(np.float32),
        n_users=len(user_ids),
        n_items=len(item_ids),
    )
    if test is None:
        return every, None
    n = len(parts[0][0])
    return every.take(np.arange(n)), every.take(np.arange(n, every.n_entries))


def _ratings(path: Path, lowest: float, highest: float) -> tuple[Int64, Int64, Float64]:
    """Users, items and ratings of a file."""
    lines = _read(path, "USER ITEM RATING")
    user, item, ratings = lines.table(3, 3).T
    users, items = lines.ids(user, "user"), lines.ids(item, "item")
    lines.check(
        (ratings < lowest) | (ratings > highest),
        lambda row: (
            f"rating {ratings[row]:g}; wanted {lowest:g} .. {highest:g}. For another scale "
            "give --rating-range LOW,HIGH"
        ),
    )
    return users, items, ratings


def parse_rating_range(text: str) -> tuple[float, float]:
    """Return the lowest and the highest legal rating of "LOW,HIGH"; ConfigError otherwise."""
    low, _, high = text.partition(",")
    lowest, highest = _number(low), _number(high)
    if lowest is None or highest is None or not lowest < highest:
        raise ConfigError(f"--rating-range is {text!r}; wanted LOW,HIGH such as 1,5")
    return lowest, highest


MOST_LABELS = 4096  # every vertex stores one number per label


def load_graph(path: Path, terminals: str) -> Graph:
    """Read a graph; vertices are numbered from 0 without gaps, in the order of their names.

    Args:
        path: lines VERTEX VERTEX [WEIGHT] with whole numbers as names; without a third column every
            edge has weight 1.
        terminals: known labels: VERTEX=LABEL separated by commas, or a file of VERTEX LABEL lines.

    Raises:
        ConfigError: `terminals` is neither, names a vertex that is not in the graph, or has one
            label only.
        DataError: a line is malformed, joins a vertex with itself, or has a weight below 0; the
            message names the line.
    """
    lines = _read(path, "VERTEX VERTEX [WEIGHT]")
    table = lines.table(2, 3)
    ends = np.concatenate([lines.ids(table[:, k], "vertex") for k in (0, 1)])
    n = len(table)
    cost = table[:, 2] if table.shape[1] > 2 else np.ones(n)
    lines.check(ends[:n] == ends[n:], lambda _: "an edge from a vertex to itself; leave it out")
    lines.check(
        (cost < 0) | (cost > np.finfo(np.float32).max),
        lambda row: f"weight {cost[row]:g}; the cost of a cut is 0 or more, and a float32",
    )
    known = parse_terminals(terminals)
    names, numbers = np.unique(ends, return_inverse=True)
    missing = sorted(known.keys() - set(names.tolist()))
    if missing:
        raise ConfigError(f"terminal {missing[0]} is not a vertex of {path}")
    return Graph(
        heads=numbers[:n].astype(np.int32),
        tails=numbers[n:].astype(np.int32),
        weights=cost.astype(np.float32),
        n_vertices=len(names),
        terminals={int(np.searchsorted(names, name)): label for name, label in known.items()},
        labels=max(known.values()) + 1,
    )


def parse_terminals(terminals: str) -> dict[int, int]:
    """Return the label of each terminal, by the vertex's name in the graph file.

    Raises:
        ConfigError: it is neither VERTEX=LABEL by commas nor a file, or has one label only.
    """
    if Path(terminals).is_file():
        lines = _read(Path(terminals), "VERTEX LABEL")
        vertices, labels = lines.table(2, 2).T
        names, values = lines.ids(vertices, "vertex"), lines.ids(labels, "label")
        known = dict(zip(names.tolist(), values.tolist(), strict=True))
    else:
        pairs = {pair: _PAIR.fullmatch(pair) for pair in terminals.split(",")}
        known = {int(pair[1]): int(pair[2]) for pair in pairs.values() if pair}
        if wrong := [text for text, pair in pairs.items() if not pair]:
            raise ConfigError(
                f"--terminals has {wrong[0]!r}; wanted VERTEX=LABEL separated by commas, such as "
                "0=0,33=1, or a file of VERTEX LABEL lines"
            )
    if len(set(known.values())) < 2 or max(known.values()) >= MOST_LABELS:
        raise ConfigError(
            f"--terminals has the labels {sorted(set(known.values()))[-3:]}; a cut needs two or "
            f"more, numbered from 0, {MOST_LABELS} at most"
        )
    return known
