"""Documents out of one file: plain text, JSON lines, CSV or Parquet, compressed or not.

Documents are bytes, so that text which is not UTF-8 survives the byte tokenizer unchanged. A byte
order mark is dropped and CRLF becomes LF. Nothing else is altered, and every error names the file,
the line where there is one, and the way out.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlxhog.data import tables, unpacking
from mlxhog.data.examples import Example
from mlxhog.data.unpacking import Bounds
from mlxhog.errors import DataError, message_of, shown
from mlxhog.files import plain_json, reading

TEXT_SUFFIXES = frozenset(
    ".txt .text .md .rst .tex .org .py .pyi .c .h .cc .cpp .hpp .rs .go .js .ts .java .swift "
    ".metal .sh .sql .html .css .toml .yaml .yml .jsonl .parquet".split()
)
"""What a folder is searched for; a file that is named directly may have any suffix."""

RECORD_SUFFIXES = frozenset([".jsonl", tables.PARQUET_SUFFIX, *tables.CSV_SUFFIXES])
"""Files of records; any other is text."""

EXAMPLE = ("prompt", "completion")
TEXT_KEYS = (("text",), ("content",), EXAMPLE, ("messages",))
"""Where the text of a record is, the first that it has; a `text_key` says it otherwise."""

SPLIT_SUFFIXES = frozenset(["", ".txt", ".text"])
SPLIT_BYTES = 65_536
"""A single file of prose above this size is cut at blank lines ..."""
PIECE_BYTES = 2_048
"""... into documents of at least this size."""

_BOM = b"\xef\xbb\xbf"


def kind(path: Path) -> str:
    """Return the suffix that says what a file holds, without the one of its compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in unpacking.SUFFIXES else suffix


def documents(
    path: Path, text_key: str | None, *, split: bool = False, bounds: Bounds | None = None
) -> Iterator[bytes]:
    """Yield the documents of a file that hold more than white space.

    Records of a prompt and a completion are `Example`s.

    Args:
        path: the file. `.jsonl` has one record per line, `.parquet`, `.csv` and `.tsv` one per
            row; anything else is one document.
        text_key: the key, or column, that holds the text of a record; None looks for `TEXT_KEYS`,
            which CSV does not have.
        split: whether a large file of prose is cut at blank lines. The pieces, joined, are the
            file again.
        bounds: within which the file is read; None for one that the user has named.

    Raises:
        DataError: the file is missing, unreadable, binary, truncated, or a line is malformed.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    is_table = kind(path) in RECORD_SUFFIXES
    documents = _records(path, text_key, bounds) if is_table else _plain(path, split, bounds)
    for document in documents:
        if document.strip():
            yield document


def _plain(path: Path, split: bool, bounds: Bounds | None = None) -> Iterator[bytes]:
    with _open(path, bounds) as file:
        text = _read(path, file)
    _check_encoding(path, text[:_HEAD_BYTES])
    zero = text.find(b"\0")
    if zero >= 0:
        raise DataError(
            f"{path} is binary: a zero byte at offset {zero}; name the text files with a glob"
        )
    text = _normalise(text)
    if split and len(text) > SPLIT_BYTES and kind(path) in SPLIT_SUFFIXES:
        return _pieces(text)
    return iter([text])


_HEAD_BYTES = 4096
_MARKS = ((b"\xff\xfe\0\0", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


def _check_encoding(path: Path, head: bytes) -> None:
    """Refuse text of two or four bytes a character, with or without a mark, by its first bytes.

    Raises:
        DataError: it is such text.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            raise DataError(
                f"{path} is {name}; convert it: iconv -f {name} -t UTF-8 {path.name} "
                "(its mark is at byte 0)"
            )
    for name, zeros in (("UTF-16LE", head[1::2]), ("UTF-16BE", head[::2])):
        if len(head) >= 16 and zeros.count(0) > 0.9 * len(zeros) and head.count(0) < len(head):
            raise DataError(
                f"{path} looks like {name} without a mark (a zero byte at offset "
                f"{head.index(0)}); convert it: iconv -f {name} -t UTF-8 {path.name}"
            )


def not_utf8(path: Path) -> tuple[int, int] | None:
    """Return the first byte of a file, unpacked, that is not UTF-8: its offset and its value.

    Raises:
        DataError: the file is unreadable.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _open(path) as file:
        for piece in itertools.chain(_pieces_of(path, file), [b""]):
            waiting = decoder.getstate()[0]
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                return offset - len(waiting) + error.start, error.object[error.start]
            offset += len(piece)
    return None


def _pieces_of(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        while piece := file.read(1 << 20):
            yield piece
    except unpacking.damages() as error:
        raise _damaged(path, error) from error


def _pieces(text: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        blank = text.find(b"\n\n", start + PIECE_BYTES)
        end = len(text) if blank < 0 else blank + 2
        while end < len(text) and text[end] == 0x0A:
            end += 1
        yield text[start:end]
        start = end


def _records(path: Path, text_key: str | None, bounds: Bounds | None = None) -> Iterator[bytes]:
    if text_key is None and kind(path) in tables.CSV_SUFFIXES:
        with _open_table(path) as file:
            names = ", ".join(map(shown, tables.csv_columns(path, file)[:20])) or "none"
        raise DataError(
            f"{path} is a table, and nothing says which column is the text; add --text-key COLUMN. "
            f"Its columns are {names}"
        )
    for where, record in records(path, text_key, bounds):
        yield record_text(record, text_key, where)


def records(
    path: Path, text_key: str | None = None, bounds: Bounds | None = None
) -> Iterator[tuple[str, object]]:
    """Yield the records of a file of `RECORD_SUFFIXES`, each with its place for errors.

    Args:
        path: the file.
        text_key: a column to read beside those of `TEXT_KEYS`, where a format reads by columns.
        bounds: within which the file is read; None for one that the user has named.

    Raises:
        DataError: the file is unreadable, or a line is no JSON.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    if kind(path) == tables.PARQUET_SUFFIX:
        yield from tables.parquet_records(path, columns(text_key), bounds)
        return
    if kind(path) in tables.CSV_SUFFIXES:
        with _open_table(path) as file:
            yield from tables.csv_records(path, file)
        return
    most = MOST_BYTES if bounds is None else bounds.line
    with _open(path, bounds) as file:
        for number, line in enumerate(_lines(path, file, most), 1):
            if number == 1:
                _check_encoding(path, line[:_HEAD_BYTES])
            if not line.strip():
                continue
            where = f"{path}:{number}"
            # Bytes that are not UTF-8 pass through JSON as lone surrogates and come back as bytes.
            text = line.removeprefix(_BOM).decode(errors="surrogateescape")
            try:
                record = plain_json.loads(text, strict=False)
            except ValueError as error:
                raise DataError(
                    f"{where}: not JSON ({error}); repair or delete this line"
                ) from error
            yield where, record


@contextlib.contextmanager
def _open_table(path: Path) -> Iterator[BinaryIO]:
    """Open a CSV or TSV file.

    Raises:
        DataError: it is unreadable, damaged, or of two or four bytes a character.
    """
    with _open(path) as file:
        try:
            head: bytes = cast(Any, file).peek(_HEAD_BYTES)[:_HEAD_BYTES]
            _check_encoding(path, head)
            yield file
        except unpacking.damages() as error:
            raise _damaged(path, error) from error


def columns(text_key: str | None) -> tuple[str, ...]:
    """Return the keys of a record that are looked at for its text."""
    return (text_key,) if text_key else tuple(itertools.chain(*TEXT_KEYS))


def text_keys(record: object, text_key: str | None) -> tuple[str, ...]:
    """Return the keys from which the text of a record comes; none where it has no text."""
    if not isinstance(record, dict):
        return ()
    if text_key is not None:
        return (text_key,) if text_key in record else ()
    return next((keys for keys in TEXT_KEYS if all(key in record for key in keys)), ())


def fields(path: Path, text_key: str | None, most: int) -> Counter[tuple[str, ...]]:
    """Count which keys hold the texts of a file's first records, the most frequent first.

    Raises:
        DataError, EnvironmentLacks: as `documents`, of one of these records.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for where, record in itertools.islice(records(path, text_key), most):
        record_text(record, text_key, where)
        counts[text_keys(record, text_key)] += 1
    return Counter(dict(counts.most_common()))


def record_text(record: object, text_key: str | None, where: str) -> bytes:
    """Return the text of a record by the rules of `documents`.

    Raises:
        DataError: it has none.
    """
    if isinstance(record, dict) and text_key is None and text_keys(record, None) == EXAMPLE:
        parts = (_string(record, key, where) for key in EXAMPLE)
        prompt, completion = (_normalise(_to_bytes(part)) for part in parts)
        if not completion.strip():
            raise DataError(
                f"{where}: the completion is empty, so there is nothing to learn; remove this line"
            )
        return Example(prompt, completion)
    return _normalise(_to_bytes(_text(record, text_key, where)))


def _text(record: object, text_key: str | None, where: str) -> str:
    """Return the text of a record by the rules of `documents`."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: a {type(record).__name__}, expected an object with a key 'text'")
    keys = text_keys(record, text_key)
    if text_key is None and keys == ("messages",):
        return _conversation(record["messages"], where)
    key = text_key or "text"
    if not keys:
        known = ", ".join(shown(k) for k in list(record)[:20]) or "none"
        strings = [k for k, value in record.items() if isinstance(value, str)]
        longest = max(strings, key=lambda k: len(record[k]), default=None)
        way_out = f"Say text_key: {longest}" if longest else "No key holds a string"
        raise DataError(f"{where}: no key {key!r}; keys are {known}. {way_out}")
    return _string(record, keys[0], where)


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} is a {type(value).__name__}, expected a string")
    return value


def _conversation(messages: object, where: str) -> str:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(f"{where}: 'messages' has to be a list of objects with role and content")
    turns = []
    for message in messages:
        missing = {"role", "content"} - message.keys()
        if missing:
            raise DataError(f"{where}: a message has no key {min(missing)!r}")
        turns.append(f"{_string(message, 'role', where)}: {_string(message, 'content', where)}")
    return "\n".join(turns)


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # an unpaired "\ud800" escape, which no byte stands behind
        return text.encode(errors="replace")


def _normalise(text: bytes) -> bytes:
    return text.removeprefix(_BOM).replace(b"\r\n", b"\n")


MOST_BYTES = 1 << 32
"""Of one document, which is held in memory: a few bytes may unpack to any number."""


def _open(path: Path, bounds: Bounds | None = None) -> BinaryIO:
    try:
        return unpacking.open_file(path, bounds)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(path: Path, file: BinaryIO) -> bytes:
    try:
        return reading.read_all(file, MOST_BYTES)
    except unpacking.damages() as error:
        raise _damaged(path, error) from error
    except ValueError as error:
        raise _too_long(path, MOST_BYTES) from error


def _lines(path: Path, file: BinaryIO, most: int) -> Iterator[bytes]:
    try:
        while line := file.readline(most + 1):
            if len(line) > most:
                raise _too_long(path, most)
            yield line
    except unpacking.damages() as error:
        raise _damaged(path, error) from error


def _too_long(path: Path, most: int) -> DataError:
    return DataError(f"{path} holds a document of more than {most:,} bytes; split it into several")


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} is truncated or damaged ({message_of(error)}); fetch or unpack it again"
    )
