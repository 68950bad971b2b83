"""Files of data: svmlight text, rating triplets, and edge lists.

svmlight (RCV1, the LIBSVM collection)   LABEL FEATURE:VALUE ... # COMMENT; a `qid:` is ignored
ratings (MovieLens' csv and dat, ...)    USER ITEM RATING, further columns are ignored
graphs (SNAP, KONECT)                    VERTEX VERTEX [WEIGHT]

Columns are separated by spaces, tabs, commas or `::`. Empty lines and what follows # or % are
skipped, and so is a first line of a table without a digit. Files `.gz` and `.bz2` are unpacked.

A function parses all lines at once, by NumPy, or raises a ValueError. Then the lines are parsed one
by one, and the error names the first wrong one with the file and the form of a line.
"""

import bz2
import gzip
import re
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import darwin, reading
from mlxhog.base.paths import expanded
from mlxhog.errors import ConfigError, DataError
from mlxhog.research.classic.problem import Graph, LabelKind, Ratings, SparseRows

VAL_SHARE = 0.2
MAX_BYTES = 1 << 33
_MAX_UNPACKED = 100  # bytes of text for each byte of a compressed file, beyond the first 16 MiB
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
_COMMENT = re.compile(r"[#%].*|(?<=\s)qid:\d+(?=\s)")
_SPACES = str.maketrans(",;\t\r", "    ")
_LARGEST = np.finfo(np.float32).max

T = TypeVar("T")
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def validation(data: SparseRows, seed: int) -> tuple[SparseRows, SparseRows]:
    """Split off a random fifth for testing; the same for the same seed.

    Raises:
        DataError: there are fewer than two examples.
    """
    n = data.n_rows
    if n < 2:
        raise DataError(f"{n} example cannot be split for training and testing; use more")
    order = np.random.default_rng([seed, 0x7E57]).permutation(n)
    n_test = max(1, int(n * VAL_SHARE))
    return data.take(np.sort(order[n_test:])), data.take(np.sort(order[:n_test]))


def _read(
    path: Path, form: str, parse: Callable[[Sequence[str], int], T], *, is_table: bool = True
) -> T:
    """Return what `parse` makes of the lines of a text file, and of the columns of the first one.

    The lines of a table may have other separators than spaces, and names above them. `parse` raises
    a ValueError if a line has another form than `form`.

    Raises:
        DataError: the file is missing, truncated or binary, has no data, or a line is wrong.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            max_bytes = MAX_BYTES
            if path.suffix in _OPENERS:
                max_bytes = min(max_bytes, _MAX_UNPACKED * path.stat().st_size + (1 << 24))
            text = reading.read_all(file, max_bytes).decode("utf-8-sig", "backslashreplace")
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {darwin.reason(error)}") from error
    except ValueError as error:
        raise DataError(f"{path} has {error} of text; unpack it, or take a part of it") from error
    if "\0" in text:
        raise DataError(f"{path} is binary: it has a zero byte")
    texts = [_COMMENT.sub("", line) for line in text.split("\n")]
    if is_table:
        texts = [line.translate(_SPACES).replace("::", " ") for line in texts]
        texts[0] = texts[0] if re.search(r"\d", texts[0]) else ""
    lines = {number: line for number, line in enumerate(texts, start=1) if line.strip()}
    if not lines:
        raise DataError(f"{path} has no data; wanted lines of {form}")
    columns = len(next(iter(lines.values())).split())
    try:
        return parse([*lines.values()], columns)
    except ValueError:
        for number, line in lines.items():
            try:
                parse([line], columns)
            except ValueError as error:
                at = f"{path}:{number}: {line.strip()[:80]!r}"
                raise DataError(f"{at}; wanted {form}") from error
        raise


def _require(*rules: NDArray[np.bool_] | bool) -> None:
    if not all(map(np.all, rules)):
        raise ValueError


def _columns(texts: Sequence[str], n: int) -> Float64:
    """The first n columns of some lines, (n, lines): finite numbers."""
    table: Float64 = np.loadtxt(texts, usecols=range(n), ndmin=2, comments=None).T
    _require(np.isfinite(table))
    return table


def _ids(column: Float64) -> Int64:
    """A column of whole numbers, which float64 has exactly."""
    _require(column >= 0, column < 2**53, column == np.floor(column))
    return column.astype(np.int64)


# -- svmlight --------------------------------------------------------------------------------------

FORM = (
    "LABEL and FEATURE:VALUE, whole numbers below 2^28, each once in ascending order, and float32"
)
_ROW = re.compile(r"\s*[^\s:_]+(?:\s+[^\s:_]+:[^\s:_]+)+\s*")
MAX_FEATURES = 1 << 28


def load_svmlight(path: Path, *, label_kind: LabelKind = "signs") -> SparseRows:
    """Read a file of rows.

    Features are numbered from 1, as in the format, unless the file has a feature 0. As signs, the
    lower one of two labels is -1 and the other one +1.

    Raises:
        DataError: a line is malformed, which the message names; or the labels are no signs.
    """
    labels, lengths, features, values = _read(path, FORM, _parse_rows, is_table=False)
    base, every = min(1, int(features.min())), np.unique(labels)
    if label_kind == "signs" and not np.isin(every, (-1, 1)).all():
        if len(every) != 2:
            some = ", ".join(f"{label:g}" for label in every[:5])
            raise DataError(f"{path} has {len(every)} labels ({some}); wanted two, such as -1, 1")
        labels = np.where(labels == every[1], 1.0, -1.0)
    return SparseRows(
        indptr=np.concatenate([[0], np.cumsum(lengths)]),
        indices=(features - base).astype(np.int32),
        values=values.astype(np.float32),
        labels=labels.astype(np.float32),
        n_features=int(features.max()) + 1 - base,
        label_kind=label_kind,
    )


def _parse_rows(texts: Sequence[str], _: int) -> tuple[Float64, Int64, Float64, Float64]:
    """Labels and lengths of rows, then their features and values."""
    if not all(map(_ROW.fullmatch, texts)):
        raise ValueError
    lengths = np.array([text.count(":") for text in texts], np.int64)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        numbers = np.fromstring(" ".join(texts).replace(":", " "), sep=" ")
    if len(numbers) != (1 + 2 * lengths).sum():  # a word is no number
        raise ValueError
    begins = np.cumsum(1 + 2 * lengths) - 1 - 2 * lengths
    features, values = np.delete(numbers, begins).reshape(-1, 2).T
    steps = np.diff(features, prepend=-1.0)
    steps[np.cumsum(lengths) - lengths] = 1
    _require(features >= 0, features == np.floor(features), features < MAX_FEATURES)
    _require(steps > 0, np.abs(values) <= _LARGEST, np.abs(numbers[begins]) <= _LARGEST)
    return numbers[begins], lengths, features, values


# -- tables: ratings and graphs --------------------------------------------------------------------


def load_ratings(path: Path) -> Ratings:
    """Read a file of ratings.

    Users and items are numbered from 0 without gaps, in the order of their identifiers.
    """

    def parse(texts: Sequence[str], _: int) -> tuple[Int64, Int64, Float64]:
        user, item, ratings = _columns(texts, 3)
        _require(np.abs(ratings) <= _LARGEST)
        return _ids(user), _ids(item), ratings

    form = "USER ITEM RATING, two whole numbers and a number"
    users, items, ratings = _read(path, form, parse)
    user_ids, users = np.unique(users, return_inverse=True)
    item_ids, items = np.unique(items, return_inverse=True)
    return Ratings(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=ratings.astype(np.float32),
        n_users=len(user_ids),
        n_items=len(item_ids),
    )


MAX_LABELS = 4096  # every vertex stores one number per label


def load_graph(path: Path, terminals: str) -> Graph:
    """Read a graph; vertices are numbered from 0 without gaps, in the order of their names.

    Lines are VERTEX VERTEX [WEIGHT], the weight 1 without a third column; `terminals`, the known
    labels, VERTEX=LABEL with commas or a file of VERTEX LABEL lines.

    Raises:
        ConfigError: `terminals` is neither, names a vertex that is not in the graph, or has one
            label only.
        DataError: a line is malformed, joins a vertex with itself, or has a weight below 0; the
            message names the line.
    """

    def parse(texts: Sequence[str], columns: int) -> tuple[Int64, Int64, Float64]:
        table = _columns(texts, max(2, min(3, columns)))
        heads, tails = _ids(table[0]), _ids(table[1])
        costs = table[2] if len(table) > 2 else np.ones(len(heads))
        _require(heads != tails, costs >= 0, costs <= _LARGEST)
        return heads, tails, costs

    form = (
        "VERTEX VERTEX [WEIGHT], two different whole numbers, and 0 or more in every line or none"
    )
    heads, tails, costs = _read(path, form, parse)
    known, n = parse_terminals(terminals), len(heads)
    names, numbers = np.unique(np.concatenate([heads, tails]), return_inverse=True)
    missing = sorted(known.keys() - set(names.tolist()))
    if missing:
        raise ConfigError(f"terminal {missing[0]} is not a vertex of {path}")
    return Graph(
        heads=numbers[:n].astype(np.int32),
        tails=numbers[n:].astype(np.int32),
        weights=costs.astype(np.float32),
        n_vertices=len(names),
        terminals={int(np.searchsorted(names, name)): label for name, label in known.items()},
        labels=max(known.values()) + 1,
    )


def parse_terminals(terminals: str) -> dict[int, int]:
    """Return the label of each terminal, by the vertex's name; a ConfigError as of `load_graph`."""

    def parse(texts: Sequence[str], _: int) -> dict[int, int]:
        vertices, labels = map(_ids, _columns(texts, 2))
        return dict(zip(vertices.tolist(), labels.tolist(), strict=True))

    try:
        if (path := expanded(terminals)).is_file():
            known = _read(path, "VERTEX LABEL, whole numbers", parse)
        else:
            known = parse(terminals.replace("=", " ").split(","), 2)
        labels = set(known.values())
        _require(len(labels) > 1, max(labels) < MAX_LABELS)
    except ValueError:
        raise ConfigError(
            f"--terminals is {terminals!r}; wanted VERTEX=LABEL separated by commas, such as "
            "0=0,33=1, or a file of VERTEX LABEL lines, with two or more labels, numbered from 0, "
            f"{MAX_LABELS} at most"
        ) from None
    return known
