"""Files of examples with labels: svmlight text, and CIFAR-10 in its binary form.

svmlight is the format of RCV1 and of the LIBSVM collection: `LABEL FEATURE:VALUE ... # COMMENT`.
NumPy parses a block of lines at once. If that fails, the lines of the block are read one by one,
which is slow, but can name the malformed line.
Format: Joachims, SVMlight; a `qid:` is ignored.

A record of CIFAR-10 is 3073 bytes: the class, 0 to 9, then 1024 bytes each of red, green and blue,
row by row. Format: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.process import available_bytes
from mlxhog.classic.datasets import DenseRows, LabelKind, SparseRows, how_to_map
from mlxhog.classic.loaders.text import TextBlock, blocks, parse_numbers, to_number, wrong
from mlxhog.errors import ConfigError, DataError, EnvironmentLacks

HELD_OUT_SHARE = 0.2
Data = TypeVar("Data", DenseRows, SparseRows)


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


# -- svmlight --------------------------------------------------------------------------------------

BYTES_PER_FEATURE = 24  # of the model: x and its copy, degrees, order, numbers, decay


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
        old, equals, new = pair.partition("=")
        try:
            if not equals:
                raise ValueError
            label = float(old)
            becomes = float(new)
        except ValueError:
            raise ConfigError(
                f"--labels has {pair!r}; wanted OLD=NEW separated by commas, such as 0=-1,1=+1"
            ) from None
        if label in mapping:
            raise ConfigError(f"--labels maps {label:g} twice")
        mapping[label] = becomes
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
        train: svmlight text; may be a `.gz` or `.bz2` file.
        test: a file of test rows in the same form.
        labels: new label for each label in the files; None keeps them.
        label_kind: required kind of the labels after this map.

    Raises:
        ConfigError: `labels` maps to other values than -1 and +1, and signs are required.
        DataError: a file or a line is malformed, a row is empty, a feature is repeated or out of
            order, a number is not finite, or a label is not mapped or not of its kind. The message
            names the line.
        EnvironmentLacks: the model with all these features does not fit into memory.
    """
    if labels is not None and label_kind == "signs" and not {*labels.values()} <= {-1.0, 1.0}:
        raise ConfigError(f"--labels maps to {sorted({*labels.values()})}; wanted -1 and +1")
    parsed = [read_rows(path, labels, label_kind) for path in (train, test) if path is not None]
    first = min(int(rows.features.min()) for rows in parsed)
    base = min(first, 1)
    n_features = max(int(rows.features.max()) for rows in parsed) + 1 - base
    _require_room(n_features)
    data_sets = [
        SparseRows(
            indptr=np.concatenate([[0], np.cumsum(rows.lengths)]),
            indices=rows.features - np.int32(base),
            values=rows.values,
            labels=rows.labels.astype(np.float32),
            n_features=n_features,
            label_kind=label_kind,
            first=base,
        )
        for rows in parsed
    ]
    return data_sets[0], data_sets[1] if test is not None else None


def _require_room(n_features: int) -> None:
    """Refuse a model that does not fit into memory, before it is allocated."""
    needed, available = n_features * BYTES_PER_FEATURE, available_bytes()
    if available and needed > available:
        raise EnvironmentLacks(
            f"the files have features up to number {n_features:,}; a model of this size needs "
            f"{needed:,} bytes, but this machine has {available:,}: renumber the features "
            "without gaps from 1"
        )


def read_rows(
    path: Path, labels: Mapping[float, float] | None = None, kind: LabelKind = "numbers"
) -> ParsedRows:
    """Read the rows of one file, with its numbers of features; see `load_svmlight`."""
    parts = []
    for block in blocks(path):
        rows = parse_block(without_comments(block.text)) or parse_lines(block)
        parts.append(_with_labels(rows, block, labels, kind))
    joined = ParsedRows(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(ParsedRows)
        )
    )
    if not len(joined.labels):
        raise DataError(f"{path} has no rows, only comments and empty lines")
    return joined


def _with_labels(
    rows: ParsedRows, block: TextBlock, labels: Mapping[float, float] | None, kind: LabelKind
) -> ParsedRows:
    """The rows with mapped labels; an unmapped or illegal label is an error with its line."""
    kinds, kind_of_row = np.unique(rows.labels, return_inverse=True)
    if labels is not None:
        illegal = [label for label in kinds.tolist() if label not in labels]
    else:
        illegal = kinds[np.abs(kinds) != 1.0].tolist() if kind == "signs" else []
    if illegal:
        row = int(np.argmax(np.isin(rows.labels, illegal)))
        way_out = how_to_map(kinds) if labels is None else "Add this label to --labels"
        reason = f"label {rows.labels[row]:g}; wanted -1 or +1. {way_out}"
        wrong(block.path, _line_of_row(block, row), reason)
    if labels is None:
        return rows
    new_labels = np.array([labels[label] for label in kinds.tolist()])
    return dataclasses.replace(rows, labels=new_labels[kind_of_row])


def _line_of_row(block: TextBlock, row: int) -> int:
    filled = (number for number, line in block.lines() if words_of(line))
    return next(itertools.islice(filled, row, None))


# -- a whole block ---------------------------------------------------------------------------------

_SPACE = 32  # this byte and all smaller ones separate words


@dataclass(frozen=True)
class ParsedRows:
    """Rows of a block, with the file's numbers of features."""

    labels: NDArray[np.float64]
    lengths: NDArray[np.int64]
    features: NDArray[np.int32]
    values: NDArray[np.float32]


def parse_block(text: bytes) -> ParsedRows | None:
    """Rows of whole lines without comments, or None if a line is malformed."""
    symbols = np.frombuffer(text, dtype=np.uint8)
    in_word = symbols > _SPACE
    begins = np.flatnonzero(in_word & ~np.concatenate([[False], in_word[:-1]]))
    colons = np.flatnonzero(symbols == ord(":"))
    line = np.cumsum(symbols == ord("\n"), dtype=np.int32)[begins]
    opens_line = np.concatenate([[True], line[1:] != line[:-1]])[: len(begins)]
    # A label has no colon; every other word has one, neither at its begin nor at its end. (The
    # last symbol of the text is a line end, so it is no colon.)
    word_of_colon = np.searchsorted(begins, colons, side="right") - 1
    if not np.array_equal(word_of_colon, np.flatnonzero(~opens_line)):
        return None
    if not (in_word[colons - 1].all() and in_word[colons + 1].all()):
        return None
    numbers = parse_numbers(text.replace(b":", b" "))
    if numbers is None or len(numbers) != len(begins) + len(colons):
        return None
    first_words = np.flatnonzero(opens_line)
    lengths = np.diff(np.append(first_words, len(begins))) - 1
    # Before a label are one number per earlier label and two numbers per earlier pair.
    at_label = np.arange(len(lengths)) + 2 * (np.cumsum(lengths) - lengths)
    pairs = np.delete(numbers, at_label)
    parsed = ParsedRows(numbers[at_label], lengths, *_columns(pairs))
    return parsed if _is_sound(parsed, pairs[0::2]) else None


def _columns(pairs: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    with np.errstate(invalid="ignore", over="ignore"):
        return pairs[0::2].astype(np.int32), pairs[1::2].astype(np.float32)


def _is_sound(parsed: ParsedRows, features: NDArray[np.float64]) -> bool:
    """Whether no row is empty, numbers are finite, and `features` are int32 and ascending."""
    if not (parsed.lengths > 0).all():
        return False
    steps = np.diff(parsed.features)
    steps[np.cumsum(parsed.lengths)[:-1] - 1] = 1
    return bool(
        np.isfinite(parsed.labels).all()
        and np.isfinite(parsed.values).all()
        and np.array_equal(parsed.features, features)
        and (features >= 0).all()
        and (steps > 0).all()
    )


# -- line by line: slow, but the error names the line and the reason -------------------------------

_COMMENT = re.compile(rb"#[^\n]*")
_QID = re.compile(rb"(?<=[ \t])qid:\d+(?=\s)")
_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def without_comments(text: bytes) -> bytes:
    """Remove comments, and the `qid:` of ranking data."""
    if b"#" in text:
        text = _COMMENT.sub(b"", text)
    return _QID.sub(b"", text) if b"qid:" in text else text


def parse_lines(block: TextBlock) -> ParsedRows:
    """Rows of a block, which may have comments; DataError names the first malformed line."""
    labels, lengths, features, values = [], [], [], []
    for number, line in block.lines():
        words = words_of(line)
        if not words:
            continue
        labels.append(_parse_label(words[0], block, number))
        pairs = [_parse_pair(word, block, number) for word in words[1:]]
        if not pairs:
            wrong(block.path, number, f"label {words[0]} without features; leave empty rows out")
        for (before, _), (feature, _) in itertools.pairwise(pairs):
            if feature == before:
                wrong(block.path, number, f"feature {feature} occurs twice; sum its values")
            if feature < before:
                wrong(
                    block.path,
                    number,
                    f"feature {feature} after {before}; sort the features of each line",
                )
        lengths.append(len(pairs))
        features += [feature for feature, _ in pairs]
        values += [value for _, value in pairs]
    return ParsedRows(
        np.array(labels, dtype=np.float64),
        np.array(lengths, dtype=np.int64),
        np.array(features, dtype=np.int32),
        np.array(values, dtype=np.float32),
    )


def words_of(line: bytes) -> list[str]:
    """The words of one line without its line end; an empty list for a comment."""
    return without_comments(line + b"\n").decode(errors="backslashreplace").split()


def _parse_label(word: str, block: TextBlock, line: int) -> float:
    label = to_number(word)
    if label is None or not math.isfinite(label):
        several = "; choose one of the labels of a row" if "," in word else ""
        wrong(block.path, line, f"the label is {word!r}; wanted a finite number{several}")
    return label


def _parse_pair(word: str, block: TextBlock, line: int) -> tuple[int, float]:
    name, colon, text = word.partition(":")
    feature = to_number(name)
    if not colon or feature is None or feature < 0 or feature % 1 != 0:  # NaN and infinity as well
        wrong(block.path, line, f"{word!r}; wanted FEATURE:VALUE, with a whole number as FEATURE")
    if feature >= _INT32_MAX:
        wrong(block.path, line, f"feature {name}; wanted less than {_INT32_MAX}")
    value = to_number(text)
    if value is None or not math.isfinite(value) or abs(value) > _FLOAT32_MAX:
        wrong(block.path, line, f"feature {name} has value {text!r}; wanted a finite float32")
    return int(feature), value


# -- CIFAR-10 --------------------------------------------------------------------------------------

PIXELS, CLASSES = 3072, 10
_RECORD = PIXELS + 1
_TEST_FILE = "test_batch.bin"
_PACKED = (".gz", ".tgz", ".bz2", ".tar", ".zip")


def load_cifar10(train: Path, test: Path | None = None) -> tuple[DenseRows, DenseRows | None]:
    """Read images: pixels from 0 to 1, less the mean of each pixel over the training set.

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
        if test is None and (train / _TEST_FILE).exists():
            test = train / _TEST_FILE
    records = np.concatenate([_records(path) for path in files])
    images = _pixels(records)
    centre = images.mean(axis=0, dtype=np.float64).astype(np.float32)
    images -= centre
    rows = DenseRows(images, records[:, 0].astype(np.float32), "classes", CLASSES, centre)
    if test is None:
        return rows, None
    records = _records(test)
    images = _pixels(records)
    images -= centre
    return rows, DenseRows(images, records[:, 0].astype(np.float32), "classes", CLASSES, centre)


def _pixels(records: NDArray[np.uint8]) -> NDArray[np.float32]:
    return records[:, 1:] * np.float32(1 / 255)


def _records(path: Path) -> NDArray[np.uint8]:
    """(images, 3073) uint8, checked."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.suffix in _PACKED:
        raise DataError(f"{path} is compressed; unpack it and name the .bin file or its folder")
    whole, rest = divmod(len(content), _RECORD)
    if rest or not whole:
        raise DataError(
            f"{path} is truncated in record {whole + 1}: {len(content)} bytes are not a "
            f"multiple of {_RECORD}; download the binary version of CIFAR-10 again"
        )
    records = content.reshape(whole, _RECORD)
    illegal = records[:, 0] >= CLASSES
    if illegal.any():
        first = int(np.argmax(illegal))
        raise DataError(
            f"{path} record {first + 1} has class {records[first, 0]}; wanted 0..{CLASSES - 1} "
            "(is this the binary version of CIFAR-10?)"
        )
    return records
