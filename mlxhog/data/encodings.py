"""Recognising text, its encoding and other formats by the first bytes of a file.

Text is UTF-8. A byte-order mark at the beginning of a file names UTF-8, UTF-16 or UTF-32; such text
is decoded, and the mark is dropped. Other bytes stay as they are: a model of bytes can learn them.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any, BinaryIO, cast

HEAD_BYTES = 1 << 16
"""Number of first bytes that decide whether a file is text."""

_MARKS = (  # if one mark begins with another, the longer one comes first
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b")) + b"\x7f"
"""Control characters that text does not need; man pages have backspaces, logs have escapes."""
_MOST_CONTROLS = 0.01  # share of control characters in text; compressed data has 0.1
_MOST_FOREIGN = 0.25  # share of bytes above 127 in text that is not UTF-8, such as Latin-1
_PANDOC = "pandoc -t plain -o {0}.txt {0}"
_FORMATS = (
    (0, b"%PDF-", "a PDF document", "pdftotext {0}"),
    (0, b"%!PS", "PostScript", "ps2ascii {0} {0}.txt"),
    (0, b"{\\rtf", "a document of a word processor (RTF)", _PANDOC),
    (0, b"\xd0\xcf\x11\xe0", "a document of an old Office", "soffice --convert-to txt:Text {0}"),
    (30, b"mimetypeapplication/epub", "an e-book (EPUB)", _PANDOC),
    (30, b"mimetypeapplication/vnd.oasis", "an OpenDocument file", _PANDOC),
    (30, b"[Content_Types].xml", "a document of Office", _PANDOC),
    (0, b"PK\x03\x04", "a zip archive", "unzip {0}"),
    (257, b"ustar", "a tar archive", "tar -xf {0}"),
    (4, b"1AY&SY", "packed by bzip2", "bunzip2 {0}"),
    (0, b"7z\xbc\xaf", "a 7z archive", "7z x {0}"),
    (0, b"Rar!\x1a", "a rar archive", "unrar x {0}"),
    (0, b"\x93NUMPY", "an array of NumPy", ""),
    (0, b"ARROW1", "an Arrow file", ""),
    (0, b"SQLite format 3", "a database of SQLite", ""),
    (0, b"\x7fELF", "a program", ""),
    (0, b"\x89PNG", "a picture", ""),
    (0, b"\xff\xd8\xff", "a picture", ""),
    (0, b"GIF89a", "a picture", ""),
    (0, b"II*\0", "a picture", ""),
    (8, b"WEBP", "a picture", ""),
)
"""Offset and signature, what the file is, and the command that converts or unpacks it."""
_OF_NUMPY = re.compile(rb"PK\x03\x04.{26}[^/\0]{1,200}\.npy", re.DOTALL)

MARKUP = {
    ".ipynb": ("a notebook", "jupyter nbconvert --to markdown {0}"),
    ".html": ("a web page", _PANDOC),
    ".htm": ("a web page", _PANDOC),
    ".mbox": ("mail with its headers and attachments", "see docs/own-text.md"),
    ".geojson": ("data of a program", ""),
    ".map": ("data of a program", ""),
    ".lock": ("data of a program", ""),
    ".svg": ("a drawing", ""),
}
"""Suffix of text that is mostly markup or data: what it is, and the command that converts it."""
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY")


def head(file: BinaryIO, n_bytes: int = HEAD_BYTES) -> bytes:
    """Return at most the next `n_bytes` of a buffered file, without consuming them."""
    content: bytes = cast(Any, file).peek(n_bytes)[:n_bytes]
    return content


def has_wide_mark(file: BinaryIO) -> bool:
    """Whether a file, open at its beginning, has the byte-order mark of UTF-16 or UTF-32."""
    start = head(file, 4)
    return any(start.startswith(mark) for mark, _ in _MARKS)


def as_utf8(file: BinaryIO) -> BinaryIO:
    """Return the same text as UTF-8 without a byte-order mark.

    Args:
        file: open at its beginning, buffered. It is closed with the returned file.

    Raises:
        UnicodeError: during reading: the text is not encoded as its mark says.
    """
    start = head(file, 4)
    for mark, name in _MARKS:
        if start.startswith(mark):
            return io.BufferedReader(_Decoded(file, name), HEAD_BYTES)
    if start.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    return file


def plain(content: bytes) -> bytes:
    """Return a text as training reads it: UTF-8 without a byte-order mark, CRLF as LF.

    Raises:
        UnicodeError: the text is not encoded as its mark says.
    """
    file = io.BufferedReader(cast(Any, io.BytesIO(content)))
    return as_utf8(file).read().replace(b"\r\n", b"\n")


class _Decoded(io.RawIOBase):
    """The text of a file with a mark, as UTF-8."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Read a file from its mark on; `name` is the encoding."""
        super().__init__()
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder(name)()
        self._n_read = 0
        self._text = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as text is decoded; 0 at the end.

        Raises:
            UnicodeError: the next bytes are not text of this encoding.
        """
        while not self._text:
            content = self._file.read(HEAD_BYTES)
            waiting = len(self._decoder.getstate()[0])
            try:
                text = self._decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                at = self._n_read - waiting + error.start
                raise UnicodeError(f"{self._name}, and byte {at:,} is not") from error
            self._n_read += len(content)
            self._text = memoryview(text.encode())
            if not content:
                break
        n = min(len(buffer), len(self._text))
        buffer[:n] = self._text[:n]
        self._text = self._text[n:]
        return n

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()


def unmarked(start: bytes) -> str | None:
    """The name of an encoding of UTF-16 or UTF-32 without a mark, by the first bytes, or None."""
    start = start[:4096]
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        try:
            text = codecs.getincrementaldecoder(name)().decode(start)  # may end in a character
        except UnicodeDecodeError:
            continue
        if len(start) >= 16 and sum(" " <= c < "\x7f" or c in "\t\n\r" for c in text) > 0.9 * len(
            text
        ):
            return name
    return None


def other_format(start: bytes) -> tuple[str, str] | None:
    """What a file is that is not text, and the command that converts it; None if not known.

    Args:
        start: its first bytes; one at 262 tells an archive.
    """
    if _OF_NUMPY.match(start):
        return "arrays of NumPy", ""
    for offset, signature, what, command in _FORMATS:
        if start.startswith(signature, offset):
            return what, command
    return None


def way_out(path: Path, command: str) -> str:
    """The end of a message about a file of another format: the command of a table above."""
    if command.startswith("see "):
        return f"to convert it {command}"
    return f"unpack or convert it: {command.format(quoted(path))}" if command else "keep it out"


def records_in(start: bytes) -> str:
    """The suffix of files of records that begin like this; empty for other content.

    Args:
        start: first bytes of a file of at least `HEAD_BYTES`, or the whole file.
    """
    if start.startswith(b"PAR1"):
        return ".parquet"
    first, newline, _ = start.lstrip().partition(b"\n")
    if re.match(rb"\[\s*\{\s*\"", start.lstrip()):
        return ".json"
    if not re.match(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:', first):
        return ""
    if not newline and len(start) >= HEAD_BYTES:
        return ".jsonl"  # the first line is longer
    try:
        json.loads(first.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return ""
    return ".jsonl"


def why_no_text(start: bytes) -> str | None:
    """Say why a file is not text, judged by its first bytes; None if it is text.

    Args:
        start: first bytes of the file as UTF-8, at most `HEAD_BYTES`.
    """
    if _PRIVATE_KEY.search(start):
        return "a private key"
    if (zero := start.find(0)) >= 0:
        return f"not text: a zero byte at offset {zero}"
    n_controls = len(start) - len(start.translate(None, _CONTROLS))
    if n_controls > _MOST_CONTROLS * len(start):
        return f"not text: {n_controls} of its first {len(start):,} bytes are control characters"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # may end within a character
    except UnicodeDecodeError:
        if sum(byte > 127 for byte in start) > _MOST_FOREIGN * len(start):
            return "not UTF-8; if it is text, iconv converts it"
    return None


_UNPACK = {".gz": "gzip -dc", ".xz": "xz -dc", ".zst": "zstd -dc"}


def conversion(path: Path, name: str) -> str:
    """Return the command that writes the text of a file as UTF-8 into a new file beside it.

    Args:
        path: the file; it may be compressed.
        name: name of its encoding.
    """
    source = path.absolute()
    unpack = _UNPACK.get(source.suffix.lower())
    whole = source.with_suffix("") if unpack else source
    new = whole.with_name(f"{whole.stem}.utf8{whole.suffix}")
    convert = f"iconv -f {name} -t UTF-8"
    if unpack:
        return f"{unpack} {quoted(source)} | {convert} > {quoted(new)}"
    return f"{convert} {quoted(source)} > {quoted(new)}"


def words(data: object) -> str:
    """Return the texts that an option `data`, or its list in YAML, names, as in a shell."""
    return " ".join(map(quoted, data if isinstance(data, list) else str(data).split("\n")))


def quoted(path: Path | str) -> str:
    r"""Return a path as a user types it in a shell, also if it is not printable.

    >>> quoted("my notes/a.txt")
    "'my notes/a.txt'"
    >>> quoted("a\udcff.txt")
    "$'a\\xff.txt'"
    """
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    spelt = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(spelt)}'"
