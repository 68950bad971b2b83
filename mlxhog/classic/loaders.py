"""Files of data: svmlight text, rating triplets, edge lists, and CIFAR-10 in its binary form.

Text is read in blocks of whole lines, so that a large file needs little memory besides its arrays.
A parser turns lines into arrays at once, or raises ValueError. Where it does, halving the block
finds the first line that it refuses, and the error names the file, the line and the reason.

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
import io
import re
import shlex
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.process import available_bytes
from mlxhog.classic.datasets import DenseRows, Graph, LabelKind, Ratings, SparseRows
from mlxhog.errors import ConfigError, DataError, EnvironmentLacks

HELD_OUT_SHARE = 0.2
BLOCK_BYTES = 1 << 20
FLOAT32_MAX = float(np.finfo(np.float32).max)
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}

Data = TypeVar("Data", DenseRows, SparseRows)
Columns = tuple[NDArray[Any], ...]
Float64 = NDArray[np.float64]


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


class _Malformed(ValueError):
    """The reason why a line is refused."""


def _refuse(wrong: NDArray[np.bool_], reason: Callable[[int], str]) -> None:
    if wrong.any():
        raise _Malformed(reason(int(np.argmax(wrong))))


def _read(
    path: Path, parse: Callable[[bytes], Columns], line_form: str, *, heading: bool = True
) -> Columns:
    """The columns of a text file.

    Args:
        path: the file.
        parse: turns whole lines into arrays, or raises ValueError.
        line_form: description of a line.
        heading: whether a first line without a digit is skipped.

    Raises:
        DataError: the file is missing, empty, truncated or binary, or a line is malformed.
    """
    parts = []
    for line, text in _blocks(path):
        if line == 1 and heading:
            text = re.sub(rb"\A[^\d\n]*\n", b"\n", text)
        try:
            parts.append(parse(text))
        except ValueError:
            lines = text.removesuffix(b"\n").split(b"\n")
            refusals = partial(_refusal, parse, lines)  # None up to the bad line, then errors
            at = bisect_left(range(len(lines)), True, key=lambda k: refusals(k) is not None)
            reason, line_text = refusals(at), lines[at].decode(errors="backslashreplace")
            if not isinstance(reason, _Malformed):
                reason = ValueError(f"{line_text[:80]!r}; wanted {line_form}")
            raise DataError(f"{path}:{line + at}: {reason}") from None
    columns = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    if not columns or not len(columns[0]):
        raise DataError(f"{path} has no data; wanted lines of {line_form}")
    return columns


def _refusal(parse: Callable[[bytes], Columns], lines: list[bytes], last: int) -> ValueError | None:
    """Why the lines up to number `last` are refused, if they are."""
    try:
        parse(b"\n".join(lines[: last + 1]) + b"\n")
    except ValueError as error:
        return error
    return None


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the whole lines of a file block by block, with the number of the first one."""
    line, rest = 1, b""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            while piece := file.read(BLOCK_BYTES):
                if line == 1 and not rest:
                    piece = piece.removeprefix(b"\xef\xbb\xbf")  # byte order mark
                if b"\0" in piece:
                    raise DataError(f"{path} is binary: it has a zero byte after line {line}")
                text, newline, rest = (rest + piece).rpartition(b"\n")
                if newline:
                    yield line, text + newline
                    line += text.count(b"\n") + 1
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or damaged after line {line} ({error}); download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if rest:
        packed = path.suffix in _OPENERS
        plain = shlex.quote(str(path.with_suffix("") if packed else path))
        raise DataError(
            f"{path}:{line}: the last line has no line end, so the file may be truncated; if it is "
            f"complete, {'unpack it and ' * packed}add one: echo >> {plain}"
        )
    if line == 1:
        raise DataError(f"{path} is empty; wanted one example per line")


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


# -- svmlight --------------------------------------------------------------------------------------

BYTES_PER_FEATURE = 24  # of the model: x and its copy, degrees, order, numbers, decay
_COMMENT = re.compile(rb"#[^\n]*|(?<=[ \t])qid:\d+(?=\s)")
_ROW = re.compile(rb"\s*[^\s:]+(?:\s+[^\s:]+:[^\s:]+)+\s*")
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
    parse = partial(_parse_svmlight, labels=labels, signs=label_kind == "signs")
    files = [_read(path, parse, _ROW_FORM, heading=False) for path in (train, test) if path]
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


def _parse_svmlight(text: bytes, labels: Mapping[float, float] | None, signs: bool) -> Columns:
    lines = [line for line in _COMMENT.sub(b"", text).split(b"\n") if line.strip()]
    if not all(map(_ROW.fullmatch, lines)):
        raise ValueError
    lengths = np.array([line.count(b":") for line in lines], np.int64)
    numbers = _numbers(b" ".join(lines).replace(b":", b" "))
    at_label = np.cumsum(1 + 2 * lengths) - (1 + 2 * lengths)
    if len(numbers) != (1 + 2 * lengths).sum():
        raise ValueError
    features, values = np.delete(numbers, at_label).reshape(-1, 2).T
    illegal = (features < 0) | (features % 1 != 0) | (features >= 2**31 - 1) | np.isnan(features)
    _refuse(illegal, lambda at: f"feature {features[at]:g}; wanted a whole number below 2^31 - 1")
    steps = np.diff(features, prepend=-1.0)
    steps[np.cumsum(lengths) - lengths] = 1
    _refuse(
        steps <= 0,
        lambda at: (
            f"feature {features[at]:g} after {features[at - 1]:g}; sort the features of each line, "
            "and sum the values of equal ones"
        ),
    )
    _refuse(
        ~(np.abs(values) <= FLOAT32_MAX),
        lambda at: f"feature {features[at]:g} has value {values[at]:g}; wanted a finite float32",
    )
    old = numbers[at_label]
    _refuse(~np.isfinite(old), lambda row: f"label {old[row]:g}; wanted a finite number")
    if labels is None:
        new, way_out = old, "wanted -1 or +1. Map the labels, such as --labels 0=-1,1=+1"
    else:
        new = np.array([labels.get(label, np.nan) for label in old.tolist()])
        way_out = "add this label to --labels"
    illegal = np.abs(new) != 1 if signs else np.isnan(new)
    _refuse(illegal, lambda row: f"label {old[row]:g}; {way_out}")
    return new, lengths, features.astype(np.int32), values.astype(np.float32)


def _numbers(text: bytes) -> Float64:
    """The numbers of a text up to the first word that is none."""
    try:
        return np.fromstring(text, dtype=np.float64, sep=" ") if text else np.empty(0)
    except DeprecationWarning:
        raise ValueError from None


# -- tables: ratings and graphs --------------------------------------------------------------------

_SEPARATORS = bytes.maketrans(b",;\t\r%", b"    #")
_MOVIE = re.compile(rb"^(\d+):[ \t\r]*$", re.MULTILINE)
_MARK = -(2**60)
_ID_LIMIT = 2**53  # smaller whole numbers are exact in float64
MOST_LABELS = 4096  # a limit, because every vertex stores one number per label


def _parse_table(text: bytes, least: int, *, columns: int | None = None) -> Float64:
    """Lines as numbers, (lines, columns); all columns of the lines if `columns` is None."""
    text = text.replace(b"::", b" ").translate(_SEPARATORS)
    lines = [line for line in text.split(b"\n") if line.split(b"#")[0].strip()]
    if not lines:
        return np.empty((0, least))
    table = np.loadtxt(
        io.StringIO(b"\n".join(lines).decode("latin-1")),
        ndmin=2,
        usecols=None if columns is None else range(columns),
    )
    if table.shape[1] < least or not np.isfinite(table).all():
        raise ValueError
    return table


def _ids(column: Float64, what: str) -> NDArray[np.int64]:
    _refuse(
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
    movie = 0

    def in_range(ratings: Float64) -> NDArray[np.float32]:
        _refuse(
            (ratings < lowest) | (ratings > highest),
            lambda row: (
                f"rating {ratings[row]:g}; wanted {lowest:g} .. {highest:g}. For another scale "
                "give --rating-range LOW,HIGH"
            ),
        )
        return ratings.astype(np.float32)

    def triplets(text: bytes) -> Columns:
        user, item, rating = _parse_table(text, 3, columns=3).T
        return _ids(user, "user"), _ids(item, "item"), in_range(rating)

    def prize(text: bytes) -> Columns:
        """A line `7:` becomes the row (7, `_MARK`)."""
        nonlocal movie
        table = _parse_table(_MOVIE.sub(rb"\1,%d" % _MARK, text), 2, columns=2)
        ids, opens = _ids(table[:, 0], "user or movie"), table[:, 1] == _MARK
        # A row belongs to the last movie above it; that of the first rows is in the block before.
        last = np.maximum.accumulate(np.where(opens, np.arange(len(ids)), -1))
        movies = np.where(last >= 0, ids[last], movie)
        columns = ids[~opens], movies[~opens], in_range(table[~opens, 1])
        movie = int(movies[-1]) if len(movies) else movie
        return columns

    files = []
    for path in (train, test):
        if path is not None:
            is_prize = _MOVIE.match(next(_blocks(path))[1]) is not None
            form = "USER,RATING,DATE below a line MOVIE:" if is_prize else "USER ITEM RATING"
            files.append(_read(path, prize if is_prize else triplets, form))
    n = len(files[0][0])
    user_ids, users = np.unique(np.concatenate([one[0] for one in files]), return_inverse=True)
    item_ids, items = np.unique(np.concatenate([one[1] for one in files]), return_inverse=True)
    every = Ratings(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.concatenate([one[2] for one in files]),
        n_users=len(user_ids),
        n_items=len(item_ids),
        lowest=lowest,
        highest=highest,
    )
    if test is None:
        return every, None
    return every.take(np.arange(n)), every.take(np.arange(n, every.n_entries))


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
    heads, tails, weights = _read(path, _parse_edges, "VERTEX VERTEX [WEIGHT]")
    known = _terminal_labels(terminals)
    names, ends = np.unique(np.concatenate([heads, tails]), return_inverse=True)
    missing = sorted(known.keys() - set(names.tolist()))
    if missing:
        raise ConfigError(f"terminal {missing[0]} is not a vertex of {path}")
    return Graph(
        heads=ends[: len(heads)].astype(np.int32),
        tails=ends[len(heads) :].astype(np.int32),
        weights=weights,
        n_vertices=len(names),
        terminals={int(np.searchsorted(names, name)): label for name, label in known.items()},
        labels=max(known.values()) + 1,
    )


def _parse_edges(text: bytes) -> Columns:
    table = _parse_table(text, 2)
    heads, tails = _ids(table[:, 0], "vertex"), _ids(table[:, 1], "vertex")
    weights = table[:, 2] if table.shape[1] > 2 else np.ones(len(table))
    _refuse(heads == tails, lambda _: "an edge from a vertex to itself; leave it out")
    _refuse(
        (weights < 0) | (weights > FLOAT32_MAX),
        lambda row: f"weight {weights[row]:g}; the cost of a cut is 0 or more, and a float32",
    )
    return heads, tails, weights.astype(np.float32)


def _terminal_labels(terminals: str) -> dict[int, int]:
    """The label of each terminal, by the vertex's name in the graph file."""

    def parse(text: bytes) -> Columns:
        table = _parse_table(text, 2)
        return _ids(table[:, 0], "vertex"), _ids(table[:, 1], "label")

    if Path(terminals).is_file():
        vertices, labels = _read(Path(terminals), parse, "VERTEX LABEL")
        known = dict(zip(vertices.tolist(), labels.tolist(), strict=True))
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
    rows = DenseRows(images, records[:, 0].astype(np.float32), "classes", CLASSES)
    if test is None:
        return rows, None
    records = _records(test)
    images = records[:, 1:] * np.float32(1 / 255) - centre
    return rows, DenseRows(images, records[:, 0].astype(np.float32), "classes", CLASSES)


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
