"""The documents of one file: plain text, JSON, JSON lines, CSV or Parquet, compressed or not.

Documents are bytes, so the byte tokenizer keeps text that is not UTF-8 unchanged. A byte-order mark
is left out, and CRLF becomes LF. Nothing else is altered.

A file is read forward in pieces, so memory does not grow with its unpacked size, and a document has
at most `DOCUMENT_BYTES`. A truncated file is an error, never a shorter text. Every error begins
with the path of the file and, if known, the line, and ends with the way out.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlxhog.base import plain_json, reading
from mlxhog.base.reading import MOST_LINE_BYTES
from mlxhog.data import encodings, tables
from mlxhog.data.examples import Example
from mlxhog.data.records import record_text, text_keys
from mlxhog.errors import DataError, EnvironmentLacks, message_of, shown

try:
    import lzma
except ImportError as error:  # as of Pythons that were compiled on a Mac without it
    raise EnvironmentLacks(
        "this Python was built without xz, which the text in the package needs; install xz (brew "
        "install xz, or apt-get install liblzma-dev) and build Python again, or take another one"
    ) from error

_MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
PACKED_SUFFIXES = frozenset(_MAGIC.values())
"""Suffixes of compressed files, in small letters or capitals."""

LINES_SUFFIXES = frozenset([".jsonl", ".ndjson", ".jsonlines"])
"""Suffixes of files with a record in every line."""

TEXT_SUFFIXES = LINES_SUFFIXES | frozenset(
    ".txt .text .md .rst .tex .org .py .pyi .c .h .cc .cpp .hpp .rs .go .js .ts .java .swift "
    ".metal .sh .sql .css .toml .yaml .yml .parquet".split()
)
"""Suffixes of text; for a file with another suffix the content decides."""

SPLIT_SUFFIXES = frozenset(["", ".txt", ".text"])
SPLIT_BYTES = 65_536
"""A single file of prose above this size is cut at blank lines ..."""
PIECE_BYTES = 2_048
"""... into documents of at least this size."""
DOCUMENT_BYTES = 1 << 20
"""A longer document is cut at a line end: a tokenizer needs 200 bytes of memory per byte."""

_READ_BYTES = 1 << 18


def kind(path: Path) -> str:
    """Return the suffix of a file's content, without that of its compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED_SUFFIXES else suffix


def record_kind(path: Path) -> str:
    """Return the suffix that says how the records of a file are written; empty for plain text.

    The content decides for `.json` and for suffixes that are not known.

    Raises:
        DataError: the content decides, and the file is unreadable.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    suffix = kind(path)
    if suffix in LINES_SUFFIXES:
        return ".jsonl"
    if suffix == tables.PARQUET_SUFFIX or suffix in tables.CSV_SUFFIXES:
        return suffix
    if suffix in TEXT_SUFFIXES or suffix in encodings.MARKUP:
        return ""
    content = encodings.records_in(head_of(path))
    return content or ".json" if suffix == ".json" else content


# -- documents -------------------------------------------------------------------------------------


def documents(path: Path, text_key: str | None, *, split: bool = False) -> Iterator[bytes]:
    """Yield the documents of a file, without those that have only white space.

    A record with a prompt and a completion, or with a conversation, becomes an `Example`.

    Args:
        path: the file. A file with a `record_kind` has records; other files are one document, or
            several above `DOCUMENT_BYTES`.
        text_key: the key, or column, of the text of a record, see `records.text_keys`; None looks
            for the usual ones, except in CSV.
        split: whether a large file of prose is cut at blank lines. The pieces, joined, are the
            file again.

    Raises:
        DataError: the file is missing, unreadable, not a regular file, binary or truncated, or a
            line is malformed.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    if record_kind(path):
        texts = (record_text(one, text_key, where) for where, one in records(path, text_key))
        pieces = short_documents(texts)
    else:
        pieces = _cut(_plain(path), prose=split and kind(path) in SPLIT_SUFFIXES)
    for document in pieces:
        if document.strip():
            yield document


def short_documents(documents: Iterable[bytes]) -> Iterator[bytes]:
    """Yield documents, cut into pieces of at most `DOCUMENT_BYTES`; examples stay whole."""
    for document in documents:
        is_short = isinstance(document, Example) or len(document) <= DOCUMENT_BYTES
        yield from [document] if is_short else _cut([document], prose=False)


def plain(content: bytes) -> bytes:
    """Return a text as training reads it: without a byte-order mark, CRLF as LF."""
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")


def _plain(path: Path) -> Iterator[bytes]:
    """Yield the text of a file in pieces of any size, CRLF as LF."""
    n_read, waiting = 0, b""
    with _open(path) as file:
        while piece := file.read(_READ_BYTES):
            zero = piece.find(b"\0")
            if zero >= 0:
                raise DataError(
                    f"{path} is not text: a zero byte at offset {n_read + zero:,}; keep it out of "
                    "--data, or convert it: iconv -f UTF-16LE -t UTF-8 FILE > NEW"
                )
            n_read += len(piece)
            text = waiting + piece
            waiting = text[-1:] if text.endswith(b"\r") else b""  # the next byte may be its LF
            yield text[: len(text) - len(waiting)].replace(b"\r\n", b"\n")
    yield waiting


def _cut(pieces: Iterable[bytes], *, prose: bool) -> Iterator[bytes]:
    """Yield the documents of a text; joined, they are the text again.

    Args:
        pieces: the text.
        prose: whether a text above `SPLIT_BYTES` is cut at blank lines.
    """
    text, is_long = b"", False
    for piece in pieces:
        text += piece
        is_long = is_long or (prose and len(text) > SPLIT_BYTES)
        if is_long:
            *whole, text = _at_blank_lines(text)
            yield from short_documents(whole)
        while len(text) > DOCUMENT_BYTES:
            end = _line_end(text)
            yield text[:end]
            text = text[end:]
    yield from _at_blank_lines(text) if is_long else [text]


def _at_blank_lines(text: bytes) -> list[bytes]:
    """Cut a text after blank lines; the last piece may be incomplete or empty."""
    pieces, start = [], 0
    while start < len(text):
        blank = text.find(b"\n\n", start + PIECE_BYTES)
        end = len(text) if blank < 0 else blank + 2
        while end < len(text) and text[end] == 0x0A:
            end += 1
        pieces.append(text[start:end])
        start = end
    return pieces or [b""]


def _line_end(text: bytes) -> int:
    """Return the end of the first document of a long text: after a line, else a character."""
    end = text.rfind(b"\n", 0, DOCUMENT_BYTES) + 1 or DOCUMENT_BYTES
    while text[end - 1] != 0x0A and end > DOCUMENT_BYTES - 4 and text[end] & 0xC0 == 0x80:
        end -= 1
    return end


# -- records ---------------------------------------------------------------------------------------


def records(path: Path, text_key: str | None = None) -> Iterator[tuple[str, object]]:
    """Yield (place for errors, record) of a file that has a `record_kind`.

    Args:
        path: the file.
        text_key: the column of a table; CSV needs one, see `records.columns` for Parquet.

    Raises:
        DataError: the file is unreadable, or a line is not JSON.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    form = record_kind(path)
    if form == tables.PARQUET_SUFFIX:
        _open_regular(path).close()
        yield from tables.parquet_records(path, text_key)
        return
    with _open(path) as file:
        if form in tables.CSV_SUFFIXES:
            yield from tables.csv_records(path, file, text_key)
        elif form == ".json":
            yield from _json_records(path, file)
        else:
            for number in itertools.count(1):
                where = f"{path}:{number}"
                if not (line := file.readline(MOST_LINE_BYTES + 1)):
                    return
                if len(line) > MOST_LINE_BYTES:
                    raise DataError(
                        f"{where}: the line has more than {MOST_LINE_BYTES:,} bytes; split it "
                        "into several records"
                    )
                if line.strip():
                    yield where, _json(where, line, "repair or delete this line")


def _json_records(path: Path, file: BinaryIO) -> Iterator[tuple[str, object]]:
    """Yield (place for errors, record) of a file with one JSON value: a list, or a record."""
    try:
        content = reading.read_all(file, reading.MOST_BYTES)
    except ValueError as error:
        lines = f"jq -c '.[]' {encodings.quoted(path)} > lines.jsonl"
        raise DataError(
            f"{path} has {error}, and a list is read at once; make lines of it: {lines}"
        ) from error
    value = _json(str(path), content, "repair it, or keep it out of --data")
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"{path}, record {number}", record


def _json(where: str, text: bytes, way_out: str) -> Any:
    # Bytes that are not UTF-8 pass through JSON as lone surrogates and come back as bytes.
    decoded = text.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
    try:
        return plain_json.loads(decoded, strict=False)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); {way_out}") from error


def first_keys(path: Path, text_key: str | None) -> tuple[str, ...]:
    """Return the keys of the text in a file's first record; () for text itself.

    Raises:
        DataError, EnvironmentLacks: as `records`.
    """
    if not record_kind(path):
        return ()
    _, record = next(records(path, text_key), ("", None))
    return text_keys(record, text_key)


def without_text(path: Path, text_key: str | None) -> str:
    """Say why the first record of a file has no text; empty if it has, or there is no record.

    Raises:
        DataError, EnvironmentLacks: as `records`.
    """
    _, record = next(records(path, text_key), ("", None))
    if not isinstance(record, dict) or text_keys(record, text_key):
        return ""
    names = ", ".join(map(shown, list(record)[:5])) or "{}"
    return f"its first record has no text; --text-key names another key: {names}"


# -- opening and unpacking -------------------------------------------------------------------------


def head_of(path: Path) -> bytes:
    """Return the first `encodings.HEAD_BYTES` of a file, unpacked.

    Raises:
        DataError: it cannot be read.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    with _open(path, any_format=True) as file:
        return file.read(encodings.HEAD_BYTES)


def refuse_larger(path: Path, most: int) -> None:
    """Unpack a file once, to refuse one that is too large before anything is made of it.

    Raises:
        DataError: it has more than `most` bytes, or is unreadable.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    with _open(path, any_format=True) as file:
        n_bytes = 0
        while piece := file.read(_READ_BYTES):
            n_bytes += len(piece)
            if n_bytes > most:
                raise DataError(f"{path} holds more than {most:,} bytes, unpacked; split it")


@contextlib.contextmanager
def _open(path: Path, *, any_format: bool = False) -> Iterator[BinaryIO]:
    """Open a file to read its unpacked content, without a byte-order mark.

    The file can be read forward, as a whole or by lines.

    Raises:
        DataError: it is not a readable regular file, or has another format than text; in the
            block: it is damaged.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    with _open_regular(path) as packed:
        try:
            with _unpacked(path, packed) as file:
                start = bytes(cast(Any, file).peek(encodings.HEAD_BYTES)[: encodings.HEAD_BYTES])
                other = None if any_format else encodings.other_format(start)
                if other is not None:
                    what, command = f"{other[0]}, not UTF-8 text", other[1]
                    way_out = encodings.described(what, command, path)
                    raise DataError(f"{path} is {way_out if command else f'{what}; keep it out'}")
                if start.startswith(codecs.BOM_UTF8):
                    file.read(len(codecs.BOM_UTF8))
                yield file
        except (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError) as error:
            raise DataError(
                f"{path} is cut short or damaged ({message_of(error)}); fetch it again"
            ) from error


def _open_regular(path: Path) -> io.BufferedReader:
    """Open a file; a pipe or a device may have no end, so it is refused without waiting.

    Raises:
        DataError: the path does not exist, or is a folder, a pipe or a device.
    """
    try:
        return reading.open_regular(path)
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file; name the files in it") from error
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise DataError(
                f"{path} is a pipe or a device, but text is read more than once; save it first: "
                f"cat {encodings.quoted(path.absolute())} > text"
            ) from error
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}; make it readable, or remove it"
        ) from error


def _unpacked(path: Path, packed: io.BufferedReader) -> BinaryIO:
    """The content of a file: its suffix, else its first bytes, say how it is compressed."""
    suffix = path.suffix.lower()
    if suffix not in PACKED_SUFFIXES:
        start = packed.peek(5)
        suffix = next((one for magic, one in _MAGIC.items() if start.startswith(magic)), "")
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(packed))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(packed))
    if suffix == ".zst":
        arrow = tables.package("pyarrow", "reading .zst")
        return io.BufferedReader(arrow.CompressedInputStream(packed, "zstd"), _READ_BYTES)
    return packed
