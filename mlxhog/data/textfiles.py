"""Documents out of one text file: plain text or JSON lines, compressed or not.

Documents are bytes, so that text which is not UTF-8 survives the byte tokenizer unchanged. A byte
order mark is dropped and CRLF becomes LF. Nothing else is altered, and every error names the file,
the line where there is one, and the way out.
"""

from __future__ import annotations

import gzip
import importlib
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlxhog.config import limits
from mlxhog.config.limits import said, shown
from mlxhog.data.examples import Example
from mlxhog.errors import DataError, EnvironmentLacks
from mlxhog.files import plain_json

TEXT_SUFFIXES = frozenset(
    ".txt .text .md .rst .tex .org .py .pyi .c .h .cc .cpp .hpp .rs .go .js .ts .java .swift "
    ".metal .sh .sql .html .css .toml .yaml .yml .jsonl".split()
)
"""What a folder is searched for; a file that is named directly may have any suffix."""

SPLIT_SUFFIXES = frozenset(["", ".txt", ".text"])
SPLIT_BYTES = 65_536
"""A single file of prose above this size is cut at blank lines ..."""
PIECE_BYTES = 2_048
"""... into documents of at least this size."""

_COMPRESSED = frozenset([".gz", ".xz", ".zst"])
_BOM = b"\xef\xbb\xbf"


def kind(path: Path) -> str:
    """Return the suffix that says what a file holds, without the one of its compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def documents(path: Path, text_key: str | None, *, split: bool = False) -> Iterator[bytes]:
    """Yield the documents of a file that hold more than white space.

    Records of a prompt and a completion are `Example`s.

    Args:
        path: the file. `.jsonl` has one record per line; anything else is one document.
        text_key: the key that holds the text of a record; None looks for `text`, `content`,
            `prompt` with `completion`, `messages`, in this order.
        split: whether a large file of prose is cut at blank lines. The pieces, joined, are the
            file again.

    Raises:
        DataError: the file is missing, unreadable, binary, truncated, or a line is malformed.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    documents = _records(path, text_key) if kind(path) == ".jsonl" else _plain(path, split)
    for document in documents:
        if document.strip():
            yield document


def _plain(path: Path, split: bool) -> Iterator[bytes]:
    with _open(path) as file:
        text = _read(path, file)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    zero = text.find(b"\0")
    if zero >= 0:
        raise DataError(
            f"{path} is binary: a zero byte at offset {zero}; name the text files with a glob"
        )
    text = _normalise(text)
    if split and len(text) > SPLIT_BYTES and kind(path) in SPLIT_SUFFIXES:
        return _pieces(text)
    return iter([text])


def _pieces(text: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        blank = text.find(b"\n\n", start + PIECE_BYTES)
        end = len(text) if blank < 0 else blank + 2
        while end < len(text) and text[end] == 0x0A:
            end += 1
        yield text[start:end]
        start = end


def _records(path: Path, text_key: str | None) -> Iterator[bytes]:
    for where, record in records(path):
        yield record_text(record, text_key, where)


def records(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the records of a `.jsonl` file, each with its place for errors.

    Raises:
        DataError: the file is unreadable, or a line is no JSON.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    with _open(path) as file:
        for number, line in enumerate(_lines(path, file), 1):
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


def record_text(record: object, text_key: str | None, where: str) -> bytes:
    """Return the text of a record by the rules of `documents`.

    Raises:
        DataError: it has none.
    """
    if isinstance(record, dict) and text_key is None and _is_example(record):
        parts = (_string(record, key, where) for key in ("prompt", "completion"))
        prompt, completion = (_normalise(_to_bytes(part)) for part in parts)
        if not completion.strip():
            raise DataError(
                f"{where}: the completion is empty, so there is nothing to learn; remove this line"
            )
        return Example(prompt, completion)
    return _normalise(_to_bytes(_text(record, text_key, where)))


def _is_example(record: dict[str, Any]) -> bool:
    keys = record.keys()
    return {"prompt", "completion"} <= keys and not {"text", "content"} & keys


def _text(record: object, text_key: str | None, where: str) -> str:
    """Return the text of a record by the rules of `documents`."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: a {type(record).__name__}, expected an object with a key 'text'")
    if text_key is None and "messages" in record and not {"text", "content"} & record.keys():
        return _conversation(record["messages"], where)
    key = text_key or next((k for k in ("text", "content") if k in record), "text")
    if key not in record:
        keys = ", ".join(shown(k) for k in list(record)[:20]) or "none"
        strings = [k for k, value in record.items() if isinstance(value, str)]
        longest = max(strings, key=lambda k: len(record[k]), default=None)
        way_out = f"Say text_key: {longest}" if longest else "No key holds a string"
        raise DataError(f"{where}: no key {key!r}; keys are {keys}. {way_out}")
    return _string(record, key, where)


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


def _damages() -> tuple[type[BaseException], ...]:
    """What reading a damaged file raises; the package for .zst has an error of its own."""
    zstd = sys.modules.get("compression.zstd") or sys.modules.get("zstandard")
    own = () if zstd is None else (zstd.ZstdError,)
    return (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError, *own)


MOST_BYTES = 1 << 32
"""Of one document, which is held in memory: a few bytes may unpack to any number."""


def _open(path: Path) -> BinaryIO:
    try:
        if path.suffix == ".gz":
            return cast(BinaryIO, gzip.open(path))
        if path.suffix == ".xz":
            return cast(BinaryIO, lzma.open(path))
        if path.suffix == ".zst":
            return _open_zstd(path)
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_zstd(path: Path) -> BinaryIO:
    module = "compression.zstd" if sys.version_info >= (3, 14) else "zstandard"
    try:
        zstd = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(
            'reading .zst needs the package zstandard: pip install "mlxhog[data]"'
        ) from error
    return cast(BinaryIO, zstd.open(path, "rb"))


def _read(path: Path, file: BinaryIO) -> bytes:
    try:
        return limits.read_all(file, MOST_BYTES)
    except _damages() as error:
        raise _damaged(path, error) from error
    except ValueError as error:
        raise _too_long(path) from error


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        while line := file.readline(MOST_BYTES + 1):
            if len(line) > MOST_BYTES:
                raise _too_long(path)
            yield line
    except _damages() as error:
        raise _damaged(path, error) from error


def _too_long(path: Path) -> DataError:
    return DataError(
        f"{path} holds a document of more than {MOST_BYTES:,} bytes; split it into several"
    )


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path} is truncated or damaged ({said(error)}); fetch or unpack it again")
