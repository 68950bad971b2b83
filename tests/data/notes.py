"""A folder as people have them: 500 small files of 20 kinds, a few of them bad."""

import gzip
import io
import os
import tarfile

import numpy as np

WORDS = "lock free adds never wait note idea link café step gate cell read write".split()
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"

EACH = 23
TEXT_KINDS = (
    ".txt", ".md", ".org", ".rst", ".tex", ".log", ".1", ".cfg", ".py", ".c", ".sh", ".css", "",
)  # fmt: skip
"""Kinds of which `EACH` files are text as they stand, as those of the packed and marked kinds."""
NAMES = ("README", "Makefile", "LICENSE", "TODO", "Dockerfile")


def make_notes(folder):
    """Write the folder; returns how many of its files are text that can be read."""
    draw = np.random.default_rng(0)

    def text(n_words=60):
        words = draw.choice(WORDS, n_words)
        return "\n".join(" ".join(words[k : k + 10]) for k in range(0, n_words, 10)) + "\n"

    kinds = {
        **{suffix: lambda: text().encode() for suffix in TEXT_KINDS},
        ".1": lambda: f".TH ADD 1\n.SH NAME\nN\bNA\bAM\bME\bE {text()}".encode(),
        ".log": lambda: f"\x1b[31merror\x1b[0m {text()}".encode(),
        ".jsonl": lambda: f'{{"text": "{" ".join(text().split())}"}}\n'.encode() * 2,
        ".gz": lambda: gzip.compress(text().encode()),
        ".latin1": lambda: text().encode("latin-1"),
        ".png": lambda: _PNG + draw.bytes(200),
        ".zip": lambda: b"PK\x03\x04" + draw.bytes(200),
        ".json": lambda: b'{"settings": {"font": 12}}',
    }
    for suffix, content in kinds.items():
        for number in range(EACH):
            path = folder / f"{number % 3}" / f"my note {number}{suffix}"
            if not suffix and number < len(NAMES):
                path = path.with_name(NAMES[number])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content())
    n_texts = EACH * (len(kinds) - 3)
    make_bad(folder / "bad")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(folder / "0", "old")
    (folder / "old.tar.gz").write_bytes(archive.getvalue())
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".bashrc").write_text("alias ll='ls -l'\n")
    return n_texts


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
