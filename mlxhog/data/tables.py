"""Rows of tables: CSV, TSV and Parquet."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlxhog.base import reading
from mlxhog.base.reading import MAX_LINE_BYTES
from mlxhog.data.records import columns, package
from mlxhog.errors import DataError, message_of, shown

Records = Iterator[tuple[str, object]]
"""Place for errors, and record: a JSON value, or a row of a table as column -> value."""

_MAX_ROWS = 64  # of a Parquet file that are in memory at once
_QUOTED = re.compile(rb'[^"]*|"(?:[^"]|"")*"').fullmatch  # a field of CSV


class _Unquoted(csv.excel_tab):
    """TSV in which a quote is a character."""

    quoting = csv.QUOTE_NONE


def csv_rows(
    path: Path, file: BinaryIO, text_key: str | None, *, unquoted: bool = False
) -> Records:
    """Yield the rows of CSV or TSV with a header; no column is guessed.

    The delimiter of `.csv` is the most frequent of comma, semicolon and tab in the header. In an
    `unquoted` file quotes are characters.

    Raises:
        DataError: there is no `text_key`, or a row is malformed.
        UnicodeDecodeError: the text is not UTF-8.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    n_bytes = 0  # of this row, which has many lines if its columns have

    def read() -> Iterator[str]:
        nonlocal n_bytes
        for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
            if (n_bytes := n_bytes + len(line)) > 4 * MAX_LINE_BYTES:
                raise csv.Error(f"a row has more than {4 * MAX_LINE_BYTES:,} bytes")
            yield line.decode()

    try:
        lines = read()
        first = next(lines, "")
        delimiter = "\t" if is_tsv(path) else max(",;\t", key=first.count)
        text = itertools.chain([first], lines)
        dialect = _Unquoted if unquoted else csv.excel
        rows = csv.DictReader(text, dialect=dialect, delimiter=delimiter, strict=True)
        if text_key is None:
            names = ", ".join(map(shown, (rows.fieldnames or ())[:20]))
            raise DataError(
                f"{path} is a table; --text-key names the column of its text: {names or 'none'}"
            )
        for row in rows:
            if None in row:
                n = len(rows.fieldnames or ())
                raise csv.Error(f"{n + len(row[None])} fields, and the header has {n}")
            n_bytes = 0
            yield f"{path}:{rows.line_num}", row
    except csv.Error as error:
        raise DataError(
            f"{path}:{rows.reader.line_num}: not CSV ({error}); repair or delete this line"
        ) from error


def is_tsv(path: Path) -> bool:
    """Whether a file's suffix is that of TSV."""
    return ".tsv" in map(str.lower, path.suffixes)


def is_unquoted(file: BinaryIO) -> bool:
    """Whether TSV has no quoting, as Tatoeba's: each line is a row, and a field is no CSV."""
    n_columns, is_csv = 0, True
    for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
        if not (text := line.rstrip(b"\r\n")):
            continue
        fields = text.split(b"\t")
        if len(fields) != (n_columns := n_columns or len(fields)):
            return False  # a field with a tab or a line end in it needs quotes
        is_csv = is_csv and all(map(_QUOTED, fields))
    return not is_csv


def parquet_rows(path: Path, text_key: str | None) -> Records:
    """Yield the rows of Parquet; only columns with text are read.

    Raises:
        DataError: the file is damaged.
        EnvironmentLacks: pyarrow is not installed.
    """
    parquet = package("pyarrow.parquet", "reading .parquet")
    try:
        with parquet.ParquetFile(path) as table:
            names = columns(table.schema_arrow.names, text_key)
            batches = table.iter_batches(batch_size=_rows_at_once(table.metadata), columns=names)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, record in enumerate(rows, 1):
                yield f"{path}, row {number}", record
    except (OSError, ValueError, NotImplementedError, KeyError) as error:  # pyarrow's are these
        raise DataError(
            f"{path} is damaged or not Parquet ({message_of(error)}); fetch or write it again"
        ) from error


def _rows_at_once(metadata: Any) -> int:
    """Return how many rows fit into memory; ValueError if none does."""
    most = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            most = max(most, column.total_uncompressed_size)
            if column.total_uncompressed_size > MAX_LINE_BYTES * max(1, group.num_rows):
                raise ValueError(f"a row has more than {MAX_LINE_BYTES:,} bytes")
    return max(1, min(_MAX_ROWS, reading.MAX_BYTES // most))
