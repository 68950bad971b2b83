"""The documents of one file: plain text, JSON, JSON lines, CSV, Parquet, .docx or .odt.

Text is UTF-8; everything else is refused with the command that converts it. A byte-order mark is
left out, and CRLF becomes LF. Nothing else is altered.

A file is read in chunks, so memory does not grow with its unpacked size, and a document has at most
`DOCUMENT_BYTES`. A truncated file is an error, never a shorter text. Every error begins with the
path of the file and, if known, the line, and ends with the way out.
"""

import codecs
import contextlib
import errno
import gzip
import io
import itertools
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlxhog.base import darwin, plain_json, reading
from mlxhog.base.paths import quoted
from mlxhog.base.reading import MAX_LINE_BYTES
from mlxhog.data import tables
from mlxhog.data.office import OFFICE_SUFFIXES, office_text
from mlxhog.data.records import Example, package, plain, record_text, text_keys
from mlxhog.data.tables import Records
from mlxhog.errors import DataError, EnvironmentLacks, message_of, shown

try:
    import lzma
except ImportError as error:  # as of Pythons that were compiled on a Mac without it
    raise EnvironmentLacks(
        "this Python was built without xz, which the bundled corpus needs; install xz (brew "
        "install xz, or apt-get install liblzma-dev) and build Python again, or take another one"
    ) from error

PACKED_SUFFIXES = frozenset([".gz", ".xz", ".zst"])
"""Suffixes of compressed files; the first bytes say how to unpack."""

LINES_SUFFIXES = frozenset([".jsonl", ".ndjson", ".jsonlines"])
"""Suffixes of files with a record in every line."""

CSV_SUFFIXES = frozenset([".csv", ".tsv"])
RECORD_SUFFIXES = LINES_SUFFIXES | CSV_SUFFIXES | {".json", ".parquet"}

SOURCE_CODE = frozenset(
    ".py .pyi .c .h .cc .cpp .hpp .rs .go .js .ts .java .swift .metal .sh .sql .css .toml .yaml "
    ".yml".split()
)
PROSE = frozenset(".txt .text .md .rst .tex .org".split())
TEXT_SUFFIXES = LINES_SUFFIXES | SOURCE_CODE | PROSE | {".parquet"}
"""Suffixes of text; the content of other files decides."""

NOT_TEXT = {
    **dict.fromkeys(".geojson .map .lock .svg".split(), ""),
    **dict.fromkeys(
        ".epub .rtf .html .htm".split(), "; convert it: pandoc -t plain -o text.txt {}"
    ),
    ".ipynb": "; convert it: jupyter nbconvert --to markdown {}",
    ".mbox": "; to convert it see docs/own-text.md",
    ".pdf": "; convert it: pdftotext {}",
    ".zip": "; unpack it: unzip {}",
    **dict.fromkeys((".tar", ".tgz"), "; unpack it: tar -xf {}"),
    ".bz2": "; unpack it: bunzip2 {}",
}
"""Suffixes of markup, program data, documents and archives, which folders skip -> conversion."""

AUTO = "auto"
_USUAL = rb"<\|(?:end|start|begin)_?of_?text\|>"
"""Separators of documents, as in GPT-2's and TinyStories' files, in place of which BOS is used."""
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\f": "\f", "\\\\": "\\"}

SPLIT_SUFFIXES = frozenset(["", ".txt", ".text"])
SPLIT_BYTES = 65_536  # a single file of prose above this size is cut at blank lines ...
PIECE_BYTES = 2_048  # ... into documents of at least this size
DOCUMENT_BYTES = 1 << 20
"""A longer document is cut at a line end: a tokenizer needs 200 bytes of memory per byte."""
HEAD_BYTES = 1 << 16  # number of first bytes that decide whether a file of no known suffix is text
_READ_BYTES = 1 << 18
MAX_VALUES = 1 << 24
"""Values of a JSON text; an empty list takes three bytes there, and 64 of memory."""
XZ_BYTES = 1 << 28
"""Memory to unpack xz; `xz -9` needs a quarter, and the file may ask for four gigabytes."""


def kind(path: Path) -> str:
    """Return the suffix of a file without that of its compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED_SUFFIXES else suffix


def record_kind(path: Path) -> str:
    """Return the one of `RECORD_SUFFIXES` by which a file's records are read; "" for plain text.

    The content decides for `.json` and for unknown suffixes.

    Raises:
        DataError: the content decides, and the file is unreadable.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    suffix = kind(path)
    if suffix in RECORD_SUFFIXES and suffix != ".json":
        return suffix
    if suffix in TEXT_SUFFIXES or suffix in NOT_TEXT or suffix in OFFICE_SUFFIXES:
        return ""
    with _open(path) as file:
        return _records_in(file.read(HEAD_BYTES)) or ".json" * (suffix == ".json")


# -- documents -------------------------------------------------------------------------------------


def documents(
    path: Path,
    text_key: str | None,
    separator: str | None = AUTO,
    *,
    split: bool = False,
    separators: set[str] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yield (place for errors, document) of a file, without those that have only white space.

    A file with a `record_kind` has records; one with a prompt and a completion, or a conversation,
    becomes an `Example`. Other files are one document, or several above `DOCUMENT_BYTES`.
    `text_key` names the key or column of the text (`records.text_keys`); None means the usual ones,
    except in CSV. `split` cuts a large file of prose at blank lines. Text is cut at each
    `separator`, which is left out; None or "" cuts nothing, "auto" cuts at separators such as
    <|endoftext|>, but not in source code. Found ones are added to `separators`.

    Raises:
        DataError: the file is missing, unreadable, not a regular file, not UTF-8 or truncated, or
            a line is malformed.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    if record_kind(path):
        yield from of_records(records(path, text_key), text_key, separator, separators)
    else:
        prose = split and kind(path) in SPLIT_SUFFIXES
        is_office = path.suffix.lower() in OFFICE_SUFFIXES
        content = iter([office_text(path)]) if is_office else _plain(path)
        as_it_is = separator == AUTO and kind(path) in SOURCE_CODE
        texts = _between_separators(content, None if as_it_is else separator, separators)
        pieces = (piece for text in texts for piece in _cut(text, prose=prose))
        yield from ((str(path), piece) for piece in pieces if piece.strip())


def of_records(
    records: Records,
    text_key: str | None,
    separator: str | None,
    separators: set[str] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yield (place for errors, document) of records as `documents`."""
    for where, record in records:
        text = record_text(record, text_key, where)
        whole = isinstance(text, Example)
        texts = (
            [text] if whole else map(b"".join, _between_separators([text], separator, separators))
        )
        yield from ((where, piece) for piece in short_documents(texts) if piece.strip())


def short_documents(documents: Iterable[bytes]) -> Iterator[bytes]:
    """Yield documents of at most `DOCUMENT_BYTES`, cut if longer; examples stay whole."""
    for document in documents:
        is_short = isinstance(document, Example) or len(document) <= DOCUMENT_BYTES
        yield from [document] if is_short else _cut([document], prose=False)


def _between_separators(
    pieces: Iterable[bytes], separator: str | None, separators: set[str] | None
) -> Iterator[Iterable[bytes]]:
    """Yield the chunks of each text between separators, each before the next."""
    named = re.sub(r"\\[ntf\\]", lambda one: _ESCAPES[one[0]], separator or "")
    if not (mark := plain(named.encode(errors="replace"))):
        yield pieces
        return
    pattern = re.compile(rb"\n?(%b)\n*" % (_USUAL if separator == AUTO else re.escape(mark)))
    kept = len(mark) + 32  # a mark may begin in one piece and end in another

    def numbered() -> Iterator[tuple[int, bytes]]:
        number, text, begins = 0, b"", False
        for piece in pieces:
            text = piece.lstrip(b"\n") if begins else text + piece
            *parts, text = pattern.split(text)
            for before, mark in zip(parts[::2], parts[1::2], strict=True):
                yield number, before
                number += 1
                if separators is not None:
                    separators.add(mark.decode())
            begins = (begins or bool(parts)) and not text
            end = max(0, len(text) - kept)
            yield number, text[:end]
            text = text[end:]
        yield number, text

    for _, group in itertools.groupby(numbered(), key=lambda one: one[0]):
        yield (piece for _, piece in group)


def _plain(path: Path) -> Iterator[bytes]:
    n_read, waiting, check = 0, b"", codecs.getincrementaldecoder("utf-8")()
    with _open(path) as file:
        while piece := file.read(_READ_BYTES):
            try:
                check.decode(piece)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, str(path), piece, n_read + error.start) from None
            if (zero := piece.find(0)) >= 0:
                raise _not_utf8(path, str(path), piece, n_read + zero)
            n_read += len(piece)
            text = waiting + piece
            waiting = text[-1:] if text.endswith(b"\r") else b""  # the next byte may be its LF
            yield text[: len(text) - len(waiting)].replace(b"\r\n", b"\n")
    if rest := check.getstate()[0]:  # of a character that was cut
        raise _not_utf8(path, str(path), rest, n_read - len(rest))
    yield waiting


def _cut(pieces: Iterable[bytes], *, prose: bool) -> Iterator[bytes]:
    """Cut a text into documents; prose above `SPLIT_BYTES` is cut at blank lines."""
    text, is_long = b"", False
    for piece in pieces:
        text += piece
        is_long = is_long or (prose and len(text) > SPLIT_BYTES)
        if is_long:
            *whole, text = _at_blank_lines(text)
            yield from short_documents(whole)
        while len(text) > DOCUMENT_BYTES:
            end = text.rfind(b"\n", 0, DOCUMENT_BYTES) + 1 or DOCUMENT_BYTES
            while text[end - 1] != 0x0A and text[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            yield text[:end]
            text = text[end:]
    yield from _at_blank_lines(text) if is_long else [text]


def _at_blank_lines(text: bytes) -> list[bytes]:
    """Cut a text after blank lines; the last part may be incomplete or empty."""
    pieces, start = [], 0
    while start < len(text):
        blank = text.find(b"\n\n", start + PIECE_BYTES)
        end = len(text) if blank < 0 else blank + 2
        while end < len(text) and text[end] == 0x0A:
            end += 1
        pieces.append(text[start:end])
        start = end
    return pieces or [b""]


# -- records ---------------------------------------------------------------------------------------


def records(path: Path, text_key: str | None = None) -> Records:
    """Yield (place for errors, record) of a file with a `record_kind`; CSV needs a `text_key`.

    Raises:
        DataError: the file is unreadable, or a line is not JSON.
        EnvironmentLacks: reading it needs a package that is not installed.
    """
    suffix = record_kind(path)
    with _open(path) as file:
        if suffix in LINES_SUFFIXES:
            yield from _json_lines(path, file)
        elif suffix in CSV_SUFFIXES:
            unquoted = False
            if tables.is_tsv(path):
                with _open(path) as first:
                    unquoted = tables.is_unquoted(first)
            try:
                yield from tables.csv_rows(path, file, text_key, unquoted=unquoted)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, str(path), error.object) from None
        elif suffix == ".json":
            yield from _json_list(path, file)
        else:
            yield from tables.parquet_rows(path, text_key)


def _json_lines(path: Path, file: BinaryIO) -> Records:
    for number in itertools.count(1):
        where = f"{path}:{number}"
        if not (line := file.readline(MAX_LINE_BYTES + 1)):
            return
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{where}: the line has more than {MAX_LINE_BYTES:,} bytes; split it into several "
                "records"
            )
        if line.strip():
            yield where, _json(path, where, line, "repair or delete this line")


def _json_list(path: Path, file: BinaryIO) -> Records:
    try:
        content = reading.read_all(file, reading.MAX_BYTES)
    except ValueError as error:
        raise DataError(
            f"{path} has {error}, and a list is read at once; make lines of it: "
            f"jq -c '.[]' {quoted(path)} > lines.jsonl"
        ) from error
    value = _json(path, str(path), content, "repair it, or keep it out of --data")
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"{path}, record {number}", record


def _json(path: Path, where: str, text: bytes, way_out: str) -> Any:
    if sum(map(text.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise DataError(
            f"{where} has more than {MAX_VALUES:,} values, which would fill the memory; split it "
            "into several records"
        )
    try:
        return plain_json.loads(text.decode(), strict=False)
    except UnicodeDecodeError:
        raise _not_utf8(path, where, text) from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); {way_out}") from error


# -- what is not text ------------------------------------------------------------------------------


def why_skipped(path: Path, text_key: str | None) -> str:
    """Return why a folder skips a file, by its suffix or content; "" if it is read.

    Raises:
        DataError, EnvironmentLacks: its content decides, and cannot be read.
    """
    suffix = kind(path)
    if suffix in CSV_SUFFIXES:
        return "" if text_key else "a table; --text-key names the column of its text"
    if suffix in NOT_TEXT:
        return f"not plain text{NOT_TEXT[suffix].format('FILE')}"
    if suffix in TEXT_SUFFIXES or path.suffix.lower() in OFFICE_SUFFIXES:
        return ""  # reading it reports its errors
    if record_kind(path):
        _, record = next(records(path, text_key), ("", None))
        if not isinstance(record, dict) or text_keys(record, text_key):
            return ""
        names = ", ".join(map(shown, list(record)[:5])) or "{}"
        return f"its first record has no text; --text-key names another key: {names}"
    with _open(path) as file:
        start = file.read(HEAD_BYTES)
    if re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY", start):
        return "a private key"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # may end within a character
    except UnicodeDecodeError:
        return "not UTF-8 text; if it is text, iconv converts it"
    return "not text: it has zero bytes" if 0 in start else ""


def _not_utf8(path: Path, where: str, content: bytes, offset: int | None = None) -> DataError:
    """Return the error for content that is not UTF-8, with the command that converts it."""
    encoding = "UTF-16LE" if 0 in content[:64] else "LATIN1"
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    convert = f", or convert it: iconv -f {encoding} -t UTF-8 {{}} > NEW"
    way_out = (NOT_TEXT.get(kind(path)) or convert).format(quoted(path))
    at = "" if offset is None else f": a byte that no text has at offset {offset:,}"
    return DataError(f"{where} is not UTF-8 text{at}; keep it out of --data{way_out}")


def _records_in(start: bytes) -> str:
    """Return the suffix of records by a file's first `HEAD_BYTES`; "" for other files."""
    if start.startswith(b"PAR1"):
        return ".parquet"
    first, newline, _ = start.lstrip().partition(b"\n")
    if re.match(rb"\[\s*\{\s*\"", start.lstrip()):
        return ".json"
    if not re.match(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:', first):
        return ""
    if newline or len(start) < HEAD_BYTES:  # else the first line is longer
        try:
            plain_json.loads(first, strict=False)
        except ValueError:
            return ""
    return ".jsonl"


# -- opening and unpacking -------------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read its unpacked content forward; pipes and devices are not opened."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "not a regular file")
        packed = reading.open_regular(path)
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file; name the files in it") from error
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise DataError(
                f"{path} is a pipe or a device, but text is read more than once; save it first: "
                f"cat {quoted(path.absolute())} > text"
            ) from error
        raise DataError(
            f"{path} cannot be read: {darwin.reason(error)}; make it readable, or remove it"
        ) from error
    with packed:
        try:
            start = packed.peek(6)
            unpack = (one for magic, one in _UNPACK.items() if start.startswith(magic))
            with next(unpack, lambda plain: plain)(packed) as file:
                if file.peek(3).startswith(codecs.BOM_UTF8):
                    file.read(len(codecs.BOM_UTF8))
                reading.refuse_lfs_pointer(path, file.peek(HEAD_BYTES), DataError)
                yield file
        except MemoryError as error:
            raise EnvironmentLacks(
                f"{path} needs more memory to be read ({message_of(error)}); free some, or divide "
                "the file"
            ) from error
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(
                f"{path} is cut short or damaged ({message_of(error)}); fetch it again"
            ) from error


def _zstd(packed: io.BufferedReader) -> BinaryIO:
    arrow = package("pyarrow", "reading .zst")
    return io.BufferedReader(arrow.CompressedInputStream(packed, "zstd"), _READ_BYTES)


class _Unxz(io.RawIOBase):
    """The content of xz streams, unpacked within `XZ_BYTES`, unlike by `lzma.open`."""

    def __init__(self, packed: io.BufferedReader) -> None:
        self._packed, self._waiting = packed, b""
        self._stream = lzma.LZMADecompressor(memlimit=XZ_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        while True:
            if self._stream.eof:  # another stream may follow, behind zeros
                self._waiting = self._waiting.lstrip(b"\0")
            if not self._waiting and (self._stream.needs_input or self._stream.eof):
                if not (piece := self._packed.read(_READ_BYTES)):
                    if self._stream.eof:
                        return 0
                    raise EOFError("the end of the stream is missing")
                self._waiting = piece
                continue
            if self._stream.eof:
                self._stream = lzma.LZMADecompressor(memlimit=XZ_BYTES)
            try:
                text = self._stream.decompress(self._waiting, len(out))
            except lzma.LZMAError as error:
                if "limit" not in str(error):
                    raise
                raise DataError(
                    f"{self._packed.name} needs more than {XZ_BYTES:,} bytes of memory to unpack; "
                    "pack it again: xz -9"
                ) from error
            self._waiting = self._stream.unused_data
            if text:
                out[: len(text)] = text
                return len(text)


_UNPACK: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ": lambda packed: io.BufferedReader(_Unxz(packed), _READ_BYTES),
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""First bytes of a compressed file -> its reader."""
