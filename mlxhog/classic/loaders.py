"""Files of data: svmlight text, rating triplets, edge lists, and CIFAR-10 in its binary form.

Every line of a text becomes a row of NumPy arrays, so an error names the file, the line and the
reason.

svmlight (RCV1, the LIBSVM collection)   LABEL FEATURE:VALUE ... # COMMENT; a `qid:` is ignored
ratings (MovieLens' csv and dat, ...)    USER ITEM RATING, further columns are ignored
ratings of the Netflix prize             a line `MOVIE:`, then lines USER,RATING,DATE of this movie
graphs (SNAP, KONECT)                    VERTEX VERTEX [WEIGHT]
CIFAR-10                                 records of 3073 bytes: the class, 0 to 9, then 1024 bytes
                                         each of red, green and blue, row by row

Columns are separated by spaces, tabs, commas or `::`. Empty lines and what follows # or % are
skipped, and so is a first line without a digit. Files `.gz` and `.bz2` are unpacked.
"""

from __future__ import annotations

import bz2
import gzip
import re
import shlex
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.process import available_bytes
from mlxhog.base import reading
from mlxhog.classic.datasets import DenseRows, Graph, LabelKind, Ratings, SparseRows
from mlxhog.errors import ConfigError, DataError, EnvironmentLacks

HELD_OUT_SHARE = 0.2
MOST_BYTES = 1 << 33
FLOAT32_MAX = float(np.finfo(np.float32).max)
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}

Data = TypeVar("Data", DenseRows, SparseRows)
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def held_out(data: Data, seed: int) -> tuple[Data, Data]:
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


@dataclass(frozen=True)
class _Lines:
    """The lines of a file that have data, and their numbers.

    Attributes:
        path: the file.
        form: description of a line.
        texts: each without its comment.
        numbers: from 1.
    """

    path: Path
    form: str
    texts: list[bytes]
    numbers: list[int]

    def refuse(self, at: int, reason: str = "") -> NoReturn:
        """Refuse a line."""
        text = self.texts[at].decode(errors="backslashreplace").strip()
        reason = reason or f"{text[:80]!r}; wanted {self.form}"
        raise DataError(f"{self.path}:{self.numbers[at]}: {reason}")

    def check(
        self, wrong: NDArray[np.bool_], reason: Callable[[int], str], of: NDArray[Any] | None = None
    ) -> None:
        """Refuse the first line with a wrong entry; entry k is of line `of[k]`, or of line k."""
        if wrong.any():
            at = int(np.argmax(wrong))
            self.refuse(at if of is None else int(of[at]), reason(at))

    def parse(self, texts: list[bytes], counts: NDArray[np.int64]) -> Float64:
        """The words of each line as numbers, so many of each; refuses a line with another word."""
        numbers = _numbers(b" ".join(texts))
        if len(numbers) != counts.sum():
            self.refuse(next(k for k, n in enumerate(counts) if len(_numbers(texts[k])) != n))
        return numbers


def _numbers(text: bytes) -> Float64:
    """The words as numbers; fewer if one is none."""
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            return np.fromstring(text, sep=" ")
    except ValueError:
        return np.empty(0)


def _read(path: Path, form: str, *, heading: bool = True, separators: bytes = b"") -> _Lines:
    """Read a text file.

    Args:
        path: the file.
        form: description of a line.
        heading: whether a first line without a digit is skipped.
        separators: further characters that separate columns.

    Raises:
        DataError: the file is missing, empty, truncated or binary, or has no data.
    """
    packed = path.suffix in _OPENERS
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            text = reading.read_all(file, MOST_BYTES)
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text:
        raise DataError(f"{path} is empty; wanted one example per line")
    if b"\0" in text:
        raise DataError(f"{path} is binary: it has a zero byte")
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # byte order mark
    if lines.pop():
        plain = shlex.quote(str(path.with_suffix("") if packed else path))
        raise DataError(
            f"{path}:{len(lines) + 1}: the last line has no line end, so the file may be truncated;"
            f" if it is complete, {'unpack it and ' * packed}add one: echo >> {plain}"
        )
    if heading and lines and not re.search(rb"\d", lines[0]):
        lines[0] = b""
    spaces = bytes.maketrans(separators, b" " * len(separators))
    texts = [_COMMENT.sub(b"", line).translate(spaces) for line in lines]
    numbers = [number for number, line in enumerate(texts, start=1) if line.strip()]
    if not numbers:
        raise DataError(f"{path} has no data; wanted lines of {form}")
    return _Lines(path, form, [texts[number - 1] for number in numbers], numbers)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


# -- svmlight --------------------------------------------------------------------------------------

BYTES_PER_FEATURE = 24  # of the model: x and its copy, degrees, order, numbers, decay
_COMMENT = re.compile(rb"[#%].*|(?<=\s)qid:\d+(?=\s)")
_ROW = re.compile(rb"\s*[^\s:_]+(?:\s+[^\s:_]+:[^\s:_]+)+\s*")
_ROW_FORM = "LABEL FEATURE:VALUE ..., features in ascending order"


def parse_label_map(text: str | None) -> dict[float, float] | None:
    """Return the map from old to new labels, or None if labels do not change.

    Args:
        text: pairs OLD=NEW separated by commas, such as "1=-1,2=+1".

    Raises:
        ConfigError: `text` is not such a list.
    """
    if text is None:
        return None
    mapping: dict[float, float] = {}
    for pair in text.split(","):
        old, new = (_number(word) for word in (pair + "=").split("=")[:2])
        if old is None or new is None or pair.count("=") != 1:
            raise ConfigError(
                f"--labels has {pair!r}; wanted OLD=NEW separated by commas, such as 0=-1,1=+1"
            )
        if old in mapping:
            raise ConfigError(f"--labels maps {old:g} twice")
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
        ConfigError: `labels` maps to other values than -1 and +1, and signs are required.
        DataError: a file or a line is malformed; the message names the line.
        EnvironmentLacks: the model with all these features does not fit into memory.
    """
    if labels is not None and label_kind == "signs" and not {*labels.values()} <= {-1.0, 1.0}:
        raise ConfigError(f"--labels maps to {sorted({*labels.values()})}; wanted -1 and +1")
    signs = label_kind == "signs"
    files = [_parse_svmlight(path, labels, signs=signs) for path in (train, test) if path]
    base = min(1, *(int(features.min()) for _, _, features, _ in files))
    n_features = max(int(features.max()) for _, _, features, _ in files) + 1 - base
    needed, available = n_features * BYTES_PER_FEATURE, available_bytes()
    if available and needed > available:
        raise EnvironmentLacks(
            f"the files have features up to number {n_features:,}; a model of this size needs "
            f"{needed:,} bytes, but this machine has {available:,}: renumber the features "
            "without gaps from 1"
        )
    rows = [
        SparseRows(
            indptr=np.concatenate([[0], np.cumsum(lengths)]),
            indices=features - np.int32(base),
            values=values,
            labels=row_labels.astype(np.float32),
            n_features=n_features,
            label_kind=label_kind,
        )
        for row_labels, lengths, features, values in files
    ]
    return rows[0], rows[1] if test is not None else None


def _parse_svmlight(
    path: Path, labels: Mapping[float, float] | None, *, signs: bool
) -> tuple[Float64, NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Labels and lengths of all rows, then their features and values."""
    lines = _read(path, _ROW_FORM, heading=False)
    for at, text in enumerate(lines.texts):
        if not _ROW.fullmatch(text):
            lines.refuse(at)
    lengths = np.array([text.count(b":") for text in lines.texts], np.int64)
    numbers = lines.parse([text.replace(b":", b" ") for text in lines.texts], 1 + 2 * lengths)
    ends = np.cumsum(1 + 2 * lengths)
    old = numbers[ends - 1 - 2 * lengths]
    features, values = np.delete(numbers, ends - 1 - 2 * lengths).reshape(-1, 2).T
    rows = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.diff(features, prepend=-1.0)
    steps[np.cumsum(lengths) - lengths] = 1
    new = old if labels is None else np.array([labels.get(one, np.nan) for one in old.tolist()])
    way_out = "add this label to --labels"
    if labels is None:
        way_out = "wanted -1 or +1. Map the labels, such as --labels 0=-1,1=+1"
    lines.check(
        (features < 0) | (features != np.floor(features)) | ~(features < 2**31 - 1),
        lambda at: f"feature {features[at]:g}; wanted a whole number below 2^31 - 1",
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
        ~(np.abs(values) <= FLOAT32_MAX),
        lambda at: f"feature {features[at]:g} has value {values[at]:g}; wanted a finite float32",
        rows,
    )
    lines.check(~np.isfinite(old), lambda row: f"label {old[row]:g}; wanted a finite number")
    lines.check(
        np.abs(new) != 1 if signs else np.isnan(new), lambda row: f"label {old[row]:g}; {way_out}"
    )
    return new, lengths, features.astype(np.int32), values.astype(np.float32)


# -- tables: ratings and graphs --------------------------------------------------------------------

_MOVIE = re.compile(rb"\s*\d+:\s*")
_ID_LIMIT = 2**53  # smaller whole numbers are exact in float64
MOST_LABELS = 4096  # a limit, because every vertex stores one number per label


def _table(lines: _Lines, least: int, most: int) -> Float64:
    """The lines as numbers, (lines, columns): as many columns as the first line has, up to most."""
    columns = min(most, len(lines.texts[0].split()))
    words = [text.split()[:columns] for text in lines.texts]
    for at, each in enumerate(words):
        if len(each) < max(columns, least):
            lines.refuse(at)
    counts = np.full(len(words), columns)
    table = lines.parse([b" ".join(each) for each in words], counts).reshape(-1, columns)
    for at in np.flatnonzero(~np.isfinite(table).all(axis=1))[:1]:
        lines.refuse(int(at))
    return table


def _ids(lines: _Lines, column: Float64, what: str) -> Int64:
    lines.check(
        (column < 0) | (column >= _ID_LIMIT) | (column != np.floor(column)),
        lambda row: f"{what} {column[row]:g}; wanted a whole number, 0 or more",
    )
    return column.astype(np.int64)


def load_ratings(
    train: Path, test: Path | None = None, *, lowest: float = 1.0, highest: float = 5.0
) -> tuple[Ratings, Ratings | None]:
    """Read one file, or a training and a test file with the same identifiers.

    Users and items are numbered from 0 without gaps, in the order of their identifiers.

    Args:
        train: triplets, or the form of the prize.
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
    lines = _read(path, "USER ITEM RATING", separators=b",;\t\r")
    if _MOVIE.fullmatch(lines.texts[0]):
        users, items, ratings, lines = _prize(lines)
    else:
        lines = replace(lines, texts=[text.replace(b"::", b" ") for text in lines.texts])
        user, item, ratings = _table(lines, 3, 3).T
        users, items = _ids(lines, user, "user"), _ids(lines, item, "item")
    lines.check(
        (ratings < lowest) | (ratings > highest),
        lambda row: (
            f"rating {ratings[row]:g}; wanted {lowest:g} .. {highest:g}. For another scale "
            "give --rating-range LOW,HIGH"
        ),
    )
    return users, items, ratings


def _prize(lines: _Lines) -> tuple[Int64, Int64, Float64, _Lines]:
    """Users, movies and ratings in the prize's form, and the lines that have them."""
    opens = np.array([_MOVIE.fullmatch(text) is not None for text in lines.texts])
    names = np.array([int(lines.texts[k].rstrip().rstrip(b":")) for k in np.flatnonzero(opens)])
    rest = np.flatnonzero(~opens)
    lines = _Lines(
        lines.path,
        "USER,RATING,DATE below a line MOVIE:",
        [lines.texts[k] for k in rest],
        [lines.numbers[k] for k in rest],
    )
    user, ratings = _table(lines, 2, 2).T if len(rest) else np.empty((2, 0))
    return _ids(lines, user, "user"), names[np.cumsum(opens)[rest] - 1], ratings, lines


def parse_rating_range(text: str) -> tuple[float, float]:
    """Return the lowest and the highest legal rating of "LOW,HIGH".

    Raises:
        ConfigError: `text` is not such a pair.
    """
    low, _, high = text.partition(",")
    lowest, highest = _number(low), _number(high)
    if lowest is None or highest is None or not lowest < highest:
        raise ConfigError(f"--rating-range is {text!r}; wanted LOW,HIGH such as 1,5")
    return lowest, highest


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
    lines = _read(path, "VERTEX VERTEX [WEIGHT]", separators=b",;\t\r")
    table = _table(lines, 2, 3)
    ends = np.concatenate([_ids(lines, table[:, k], "vertex") for k in (0, 1)])
    n = len(table)
    cost = table[:, 2] if table.shape[1] > 2 else np.ones(n)
    lines.check(ends[:n] == ends[n:], lambda _: "an edge from a vertex to itself; leave it out")
    lines.check(
        (cost < 0) | (cost > FLOAT32_MAX),
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
        lines = _read(Path(terminals), "VERTEX LABEL", separators=b",;\t\r")
        vertices, labels = _table(lines, 2, 2).T
        names, values = _ids(lines, vertices, "vertex"), _ids(lines, labels, "label")
        known = dict(zip(names.tolist(), values.tolist(), strict=True))
    else:
        known = {}
        for pair in terminals.split(","):
            vertex, _, label = pair.partition("=")
            if not (vertex.strip().isdecimal() and label.strip().isdecimal()):
                raise ConfigError(
                    f"--terminals has {pair!r}; wanted VERTEX=LABEL separated by commas, such as "
                    "0=0,33=1, or a file of VERTEX LABEL lines"
                )
            known[int(vertex)] = int(label)
    if len(set(known.values())) < 2:
        raise ConfigError("--terminals has one label only; a cut needs two or more")
    if max(known.values()) >= MOST_LABELS:
        raise ConfigError(
            f"--terminals has the label {max(known.values())}; number them from 0, "
            f"{MOST_LABELS} at most"
        )
    return known


# -- CIFAR-10 --------------------------------------------------------------------------------------

PIXELS, CLASSES = 3072, 10


def load_cifar10(train: Path, test: Path | None = None) -> tuple[DenseRows, DenseRows | None]:
    """Read images: pixels from 0 to 1, less the mean of each pixel over the training set.

    Source of the format: https://www.cs.toronto.edu/~kriz/cifar.html

    Args:
        train: a file, or the folder with data_batch_1.bin .. data_batch_5.bin, which are all read.
        test: a file; if None and `train` is a folder, its test_batch.bin if there is one.

    Raises:
        DataError: a file is missing, truncated in a record, or has a class above 9; the message
            names the record.
    """
    files = [train]
    if train.is_dir():
        files = sorted(train.glob("data_batch_*.bin"))
        if not files:
            raise DataError(f"{train} has no data_batch_*.bin; name the folder of CIFAR-10's files")
        if test is None and (train / "test_batch.bin").exists():
            test = train / "test_batch.bin"
    records = np.concatenate([_records(path) for path in files])
    images = records[:, 1:] * np.float32(1 / 255)
    centre = images.mean(axis=0, dtype=np.float64).astype(np.float32)
    images -= centre
    rows = DenseRows(images, records[:, 0].astype(np.float32), CLASSES)
    if test is None:
        return rows, None
    records = _records(test)
    images = records[:, 1:] * np.float32(1 / 255) - centre
    return rows, DenseRows(images, records[:, 0].astype(np.float32), CLASSES)


def _records(path: Path) -> NDArray[np.uint8]:
    """(images, 3073) uint8, checked."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.suffix in (*_OPENERS, ".tgz", ".tar", ".zip"):
        raise DataError(f"{path} is compressed; unpack it and name the .bin file or its folder")
    whole, rest = divmod(len(content), PIXELS + 1)
    if rest or not whole:
        raise DataError(
            f"{path} is truncated in record {whole + 1}: {len(content)} bytes are not a "
            f"multiple of {PIXELS + 1}; download the binary version of CIFAR-10 again"
        )
    records = content.reshape(whole, PIXELS + 1)
    illegal = records[:, 0] >= CLASSES
    if illegal.any():
        first = int(np.argmax(illegal))
        raise DataError(
            f"{path} record {first + 1} has class {records[first, 0]}; wanted 0..{CLASSES - 1} "
            "(is this the binary version of CIFAR-10?)"
        )
    return records
