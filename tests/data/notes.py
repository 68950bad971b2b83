"""Files of a folder that cannot be read, each with its fault."""

import gzip
import os

BAD = {
    "half.txt.gz": "cut short or damaged",
    "table.parquet": "not Parquet",
    "lines.jsonl": "line 2: not JSON",
    "wrong.txt": "not text: a zero byte at offset 4",
    "wide.txt": "text in UTF-16",
    "wide.md": "not text: a zero byte at offset 0",
    "pipe.txt": "a pipe",
    "zero.txt": "a pipe or a device",
    "nowhere.txt": "cannot be read: No such file",
    "empty.txt": "no text",
    "blank.md": "no text",
}
"""File -> what is wrong with it."""


def make_bad(folder):
    """Write a folder of nothing but bad files."""
    folder.mkdir()
    (folder / "half.txt.gz").write_bytes(gzip.compress(b"never wait " * 50)[:-9])
    (folder / "table.parquet").write_bytes(b"PAR1 and no more")
    (folder / "lines.jsonl").write_text('{"text": "good"}\n{"text": "cut\n')
    (folder / "wrong.txt").write_bytes(b"text\0")
    (folder / "wide.txt").write_bytes("\ufeffone".encode("utf-16-le"))
    (folder / "wide.md").write_bytes("never wait, never lock".encode("utf-16-be"))
    os.mkfifo(folder / "pipe.txt")
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "nowhere.txt").symlink_to("gone.txt")
    (folder / "empty.txt").touch()
    (folder / "blank.md").write_text(" \n\n")
