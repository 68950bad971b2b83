"""Rows of tables as records: CSV and TSV, Parquet, and data sets of the package `datasets`.

A record maps the names of columns to values, like a line of `.jsonl`; `records.record_text` finds
the column with the text. For CSV it cannot, so CSV needs a `text_key`.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_bytes
from mlxhog.base.reading import MOST_LINE_BYTES
from mlxhog.data import records
from mlxhog.data.unpacking import Bounds, most_unpacked
from mlxhog.errors import DataError, EnvironmentLacks, message_of, shown

CSV_SUFFIXES = frozenset([".csv", ".tsv"])
PARQUET_SUFFIX = ".parquet"
HELD_OUT_SPLITS = ("validation", "valid", "val", "dev")
_DELIMITERS = ",;\t"
_ROWS = 256  # most rows of a Parquet file that are in memory at once
_BATCH_BYTES = 1 << 26  # most bytes of these rows, on average


def csv_records(path: Path, file: BinaryIO) -> Iterator[tuple[str, object]]:
    """Yield (file and line for errors, row) of a CSV or TSV file with a line of names.

    The delimiter of `.csv` is the most frequent of comma, semicolon and tab in the first line.
    Bytes that are not UTF-8 become lone surrogates.

    Raises:
        DataError: the file is not a table.
    """
    with _csv_rows(path, file) as (lines, rows):
        for row in rows:
            lines.n_characters = 0
            yield f"{path}:{rows.line_num}", row


def csv_columns(path: Path, file: BinaryIO) -> list[str]:
    """Return the names of a CSV file's columns, also if it has no rows.

    Raises:
        DataError: the file is not a table.
    """
    with _csv_rows(path, file) as (_, rows):
        return list(rows.fieldnames or ())


@contextlib.contextmanager
def _csv_rows(path: Path, file: BinaryIO) -> Iterator[tuple[_Lines, csv.DictReader[str]]]:
    csv.field_size_limit(MOST_LINE_BYTES)
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = _Lines(text)
        try:
            first = next(lines, "")
            is_tsv = ".tsv" in map(str.lower, path.suffixes)
            delimiter = "\t" if is_tsv else max(_DELIMITERS, key=first.count)
            # No seek to the start: a decompressor may not support it.
            rows = csv.DictReader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
            yield lines, rows
        except csv.Error as error:
            raise DataError(
                f"{path}:{lines.number}: not CSV ({error}); repair or delete this line"
            ) from error


class _Lines:
    """The lines of a table; a row may have several, up to a limit.

    Attributes:
        number: number of the last line.
        n_characters: characters of the lines since it was set to 0.
    """

    def __init__(self, text: io.TextIOBase) -> None:
        """Begin at the first line."""
        self._text = text
        self.number = self.n_characters = 0

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Return the next line.

        Raises:
            csv.Error: the row has more than `MOST_LINE_BYTES` characters.
        """
        line = self._text.readline(MOST_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.n_characters += len(line)
        if self.n_characters > MOST_LINE_BYTES:
            raise csv.Error(f"a row of more than {MOST_LINE_BYTES:,} characters")
        return line


def parquet_records(
    path: Path, text_key: str | None, bounds: Bounds | None = None
) -> Iterator[tuple[str, object]]:
    """Yield (file and row number for errors, row) of a Parquet file.

    Args:
        path: the file.
        text_key: the column of the text; None reads the usual ones, see `records.columns`.
        bounds: limits for the file; None for a file that the user has named.

    Raises:
        DataError: the file is damaged or not Parquet, or has more data than its bounds allow, or
            than a text has.
        EnvironmentLacks: the package pyarrow is not installed.
    """
    parquet = _package("pyarrow.parquet", "reading .parquet", "pyarrow")
    try:
        with ExitStack() as stack:
            source = path if bounds is None else stack.enter_context(bounds.open(path))
            file = stack.enter_context(parquet.ParquetFile(source))
            names = list(records.columns(file.schema_arrow.names, text_key))
            if bounds is None:
                size = _rows_at_once(path, file.metadata)
                batches = file.iter_batches(batch_size=size, columns=names)
                rows: Iterable[object] = (row for one in batches for row in one.to_pylist())
            else:  # this way a text that occurs in a million rows is in memory once
                texts = [leaf.path for leaf in _leaves(file.schema)]
                file = stack.enter_context(parquet.ParquetFile(source, read_dictionary=texts))
                batches = file.iter_batches(batch_size=_ROWS, columns=names)
                rows = _within(bounds, file.metadata, batches)
            for number, record in enumerate(rows, 1):
                yield f"{path}, row {number}", record
    except (OSError, ValueError, NotImplementedError, KeyError) as error:  # pyarrow's are these
        raise DataError(
            f"{path} is damaged or not Parquet ({message_of(error)}); fetch or write it again"
        ) from error


def _rows_at_once(path: Path, metadata: Any) -> int:
    """Return the number of rows of a Parquet file to read at once, by the sizes in its metadata.

    Raises:
        DataError: rows are larger than a record may be, or a small file unpacks to far too much.
    """
    packed_bytes = path.stat().st_size
    most = most_unpacked(packed_bytes)
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        n_bytes, n_rows = group.total_byte_size, max(group.num_rows, 1)
        if n_bytes > most or n_bytes // n_rows > MOST_LINE_BYTES:
            raise DataError(
                f"{path} has {format_bytes(packed_bytes)}, and {n_rows:,} of its rows unpack to "
                f"{format_bytes(n_bytes)}; write it again with shorter texts"
            )
        largest = max(largest, n_bytes // n_rows)
    return max(1, min(_ROWS, _BATCH_BYTES // largest))


def _within(bounds: Bounds, metadata: Any, batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of batches, within bounds.

    Raises:
        DataError: they have more data than the bounds allow, counted or by the file's metadata.
    """
    sizes = (metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
    if sum(sizes) > bounds.most:
        raise bounds.too_large()
    rest = bounds.most
    for batch in batches:
        for row in range(batch.num_rows):
            bounds.check()
            record = {name: batch.column(name)[row].as_py() for name in batch.schema.names}
            rest -= _characters(record)
            if rest < 0:
                raise bounds.too_large()
            yield record


def _leaves(schema: Any) -> Iterator[Any]:
    leaves = (schema.column(k) for k in range(len(schema.names)))
    return (leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY")


def _characters(value: object) -> int:
    """Number of characters in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_characters, value)) if isinstance(value, list) else 0


class DataSet:
    """The splits of a data set that the package `datasets` loads.

    Args:
        name: a name on the hub, or a folder with data files or of `save_to_disk`; a comma and the
            name of a subset may follow.

    Raises:
        DataError: there is no such data set, it cannot be loaded, or it has no split to train on.
        EnvironmentLacks: the package is not installed.
    """

    def __init__(self, name: str) -> None:
        """See the class."""
        name, _, subset = name.partition(",")
        folder = expanded(name)
        here = folder.exists()
        self.source = f"hf:{folder.absolute() if here else name}" + (f",{subset}" if subset else "")
        package = _package("datasets", f"--data hf:{name}", "datasets")
        package.disable_progress_bars()
        saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
        try:
            if saved:
                loaded = package.load_from_disk(str(folder))
            else:
                which = (str(folder) if here else name, subset or None)
                config = package.load_dataset_builder(*which).config
                # In CSV the words null, NA and None are words; the default makes them empty.
                words = {"keep_default_na": False} if hasattr(config, "keep_default_na") else {}
                loaded = package.load_dataset(*which, **words)
        except Exception as error:  # its readers and the network raise errors of any type
            raise DataError(
                f"the data set {self.source} cannot be loaded: {_causes(error)}; name one on "
                "the hub (hf:OWNER/NAME, hf:OWNER/NAME,SUBSET) or a folder"
            ) from error
        self._splits: dict[str, Any] = loaded if isinstance(loaded, dict) else {"train": loaded}
        if "train" not in self._splits and len(self._splits) != 1:
            raise DataError(
                f"the data set {self.source} has no split 'train'; its splits are "
                f"{', '.join(map(shown, self._splits))}; save the one to train on as 'train'"
            )
        self.train = "train" if "train" in self._splits else next(iter(self._splits))
        self.held_out = next((one for one in HELD_OUT_SPLITS if one in self._splits), None)

    @property
    def splits(self) -> Mapping[str, int]:
        """Name -> number of rows."""
        return {name: len(rows) for name, rows in self._splits.items()}

    def records(self, split: str, text_key: str | None) -> Iterator[tuple[str, object]]:
        """Yield the rows of a split, as `parquet_records` does."""
        rows = self._splits[split]
        names = list(records.columns(rows.column_names, text_key))
        for row, record in enumerate(rows.select_columns(names), 1):
            yield f"{self.source}, {split} row {row}", record


def _causes(error: BaseException) -> str:
    """The message of an error and of what caused it, the first cause last."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(message_of(cause))
        cause = cause.__cause__ or cause.__context__
    return ": ".join(dict.fromkeys(messages))


def _package(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(
            f"{what} needs {package}, which is not installed: python -m pip install {package}"
        ) from error
