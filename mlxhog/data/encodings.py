"""Recognising text and other formats by the first bytes of a file."""

from __future__ import annotations

import codecs
import json
import os
import re
import shlex
from pathlib import Path

HEAD_BYTES = 1 << 16
"""Number of first bytes that decide whether a file is text."""

_CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b")) + b"\x7f"
"""Control characters that text does not need; man pages have backspaces, logs have escapes."""
_MOST_CONTROLS = 0.01  # share of control characters in text; compressed data has 0.1
_MOST_FOREIGN = 0.25  # share of bytes above 127 in text that is not UTF-8, such as Latin-1
_PANDOC = "pandoc -t plain -o {0}.txt {0}"
_ICONV = "iconv -f {} -t UTF-8 {{0}} > NEW"
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
    (0, codecs.BOM_UTF32_LE, "text in UTF-32", _ICONV.format("UTF-32")),
    (0, codecs.BOM_UTF32_BE, "text in UTF-32", _ICONV.format("UTF-32")),
    (0, codecs.BOM_UTF16_LE, "text in UTF-16", _ICONV.format("UTF-16")),
    (0, codecs.BOM_UTF16_BE, "text in UTF-16", _ICONV.format("UTF-16")),
)
"""Offset and signature, what the file is, and the command that converts or unpacks it."""

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


def other_format(start: bytes) -> tuple[str, str] | None:
    """What a file is that is not text, and the command that converts it; None if not known.

    Args:
        start: its first bytes; one at 262 tells an archive.
    """
    for offset, signature, what, command in _FORMATS:
        if start.startswith(signature, offset):
            return what, command
    return None


def described(what: str, command: str, path: Path = Path("FILE")) -> str:
    """What a file of another format is, and the command of a table above; for any file or one."""
    if not command:
        return what
    if command.startswith("see "):
        return f"{what}; to convert it {command}"
    return f"{what}; unpack or convert it: {command.format(quoted(path))}"


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


def why_no_text(start: bytes) -> str:
    """Say why a file is not text, judged by its first bytes; empty if it is text.

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
    return ""


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
