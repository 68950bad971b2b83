"""Rows of tables as records: CSV and TSV, Parquet, and data sets of the package `datasets`.

A record maps the names of columns to values, like a line of `.jsonl`; `records.record_text` finds
the column with the text. CSV needs a `text_key`.
"""

from __future__ import annotations

import csv
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlxhog.base.paths import expanded
from mlxhog.base.reading import MOST_LINE_BYTES
from mlxhog.data import records
from mlxhog.errors import DataError, EnvironmentLacks, message_of, shown

CSV_SUFFIXES = frozenset([".csv", ".tsv"])
PARQUET_SUFFIX = ".parquet"
HELD_OUT_SPLITS = ("validation", "valid", "val", "dev")
_DELIMITERS = ",;\t"
_ROWS = 64  # rows of a Parquet file that are in memory at once


def csv_records(path: Path, file: BinaryIO, text_key: str | None) -> Iterator[tuple[str, object]]:
    """Yield (file and line for errors, row) of a CSV or TSV file with a line of names.

    The delimiter of `.csv` is the most frequent of comma, semicolon and tab in the first line.

    Raises:
        DataError: the file is not a table, or `text_key` is None: no column is guessed.
        UnicodeDecodeError: it is not UTF-8.
    """
    csv.field_size_limit(MOST_LINE_BYTES)
    pieces = iter(lambda: file.readline(MOST_LINE_BYTES), b"")
    lines = map(bytes.decode, pieces)
    first = next(lines, "")
    is_tsv = ".tsv" in map(str.lower, path.suffixes)
    delimiter = "\t" if is_tsv else max(_DELIMITERS, key=first.count)
    rows = csv.DictReader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    try:
        if text_key is None:
            names = ", ".join(map(shown, (rows.fieldnames or ())[:20]))
            raise DataError(
                f"{path} is a table; --text-key names the column of its text: {names}"
                if names
                else f"{path} is an empty table; write a first line with the names of its columns"
            )
        for row in rows:
            yield f"{path}:{rows.line_num}", row
    except csv.Error as error:
        raise DataError(
            f"{path}:{rows.reader.line_num}: not CSV ({error}); repair or delete this line"
        ) from error


def parquet_records(path: Path, text_key: str | None) -> Iterator[tuple[str, object]]:
    """Yield (file and row number for errors, row) of a Parquet file.

    Args:
        path: the file.
        text_key: the column of the text; None reads the usual ones, see `records.columns`.

    Raises:
        DataError: the file is damaged or not Parquet.
        EnvironmentLacks: the package pyarrow is not installed.
    """
    parquet = package("pyarrow.parquet", "reading .parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = list(records.columns(file.schema_arrow.names, text_key))
            batches = file.iter_batches(batch_size=_ROWS, columns=names)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, record in enumerate(rows, 1):
                yield f"{path}, row {number}", record
    except (OSError, ValueError, NotImplementedError, KeyError) as error:  # pyarrow's are these
        raise DataError(
            f"{path} is damaged or not Parquet ({message_of(error)}); fetch or write it again"
        ) from error


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
        datasets = package("datasets", f"--data hf:{name}")
        datasets.disable_progress_bars()
        saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
        try:
            if saved:
                loaded = datasets.load_from_disk(str(folder))
            else:
                which = (str(folder) if here else name, subset or None)
                config = datasets.load_dataset_builder(*which).config
                # In CSV the words null, NA and None are words; the default makes them empty.
                words = {"keep_default_na": False} if hasattr(config, "keep_default_na") else {}
                loaded = datasets.load_dataset(*which, **words)
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


def package(module: str, what: str) -> Any:
    """Import an optional package.

    Raises:
        EnvironmentLacks: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise EnvironmentLacks(
            f"{what} needs {name}, which is not installed: python -m pip install {name}"
        ) from error
