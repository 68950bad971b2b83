"""Which files of a folder are text, and messages about the other files.

    a known suffix      text: prose, source code, records (`textfiles.TEXT_SUFFIXES`)
    .csv, .tsv          a table; read if `text_key` names a column
    data and drawings   skipped, although the bytes are text (`DATA_SUFFIXES`)
    any other suffix    text if its first bytes are text

Hidden files and folders are skipped: they may hold settings and passwords. A file that looks like
text and cannot be read is a bad file. It is skipped like the others, and messages name it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxhog.data import encodings, tables, textfiles, unpacking
from mlxhog.errors import DataError, EnvironmentLacks
from mlxhog.files.paths import printable

DATA_SUFFIXES = frozenset(".json .geojson .ipynb .map .lock .svg".split())
"""Text that programs write for programs; a glob reads it."""
_CACHES = ("__pycache__",)

_KINDS = 6  # kinds of files that the summary names
_NAMED = 10  # most empty files that a message names; it names all damaged ones
_MOST_CHARACTERS = 3000  # most characters of names; an error message may have more

BAD = "cannot be read"
EMPTY = "no text in it"


@dataclass(frozen=True)
class Skipped:
    """A file that is not read, or a hidden folder.

    Attributes:
        path: its path.
        kind: its kind in the summary.
        reason: why it is not read.
        is_bad: whether it should be text, but is damaged, unreadable or empty.
        glob: a pattern that matches it and similar files, if a glob would read them.
    """

    path: Path
    kind: str
    reason: str
    is_bad: bool = False
    glob: str = ""

    @property
    def is_table(self) -> bool:
        """Whether it would be read if `text_key` named its column."""
        return textfiles.kind(self.path) in tables.CSV_SUFFIXES and not self.is_bad

    def to_json(self) -> dict[str, str]:
        """Return path and reason as JSON types."""
        return {"path": printable(self.path), "reason": self.reason}

    @classmethod
    def bad(cls, path: Path, error: DataError | EnvironmentLacks) -> Skipped:
        """A file whose reader raised an error, which begins with its path and line."""
        reason = re.sub(r"^:(\d+): ", r"line \1: ", str(error).removeprefix(str(path)))
        return cls(path, BAD, reason.lstrip(", ").removeprefix("is "), is_bad=True)

    @classmethod
    def empty(cls, path: Path) -> Skipped:
        """A file that is empty, or has only white space."""
        return cls(path, "empty", EMPTY, is_bad=True)


def look(folder: Path, text_key: str | None) -> tuple[tuple[Path, ...], tuple[Skipped, ...]]:
    """Return the files of a folder that are text, and the others, each in the order of paths.

    Args:
        folder: the folder, read with its subfolders; links to other folders are not followed.
        text_key: see `corpora.find`.
    """
    texts = list[Path]()
    files, skipped = walk(folder)
    for path in files:
        if one := _skipped(path, text_key):
            skipped.append(one)
        else:
            texts.append(path)
    return tuple(texts), tuple(sorted(skipped, key=lambda one: one.path))


def walk(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """Return the files of a folder in the order of paths, and its hidden or unreadable entries."""
    files, skipped = list[Path](), list[Skipped]()

    def closed(error: OSError) -> None:
        path = Path(error.filename)
        reason = f"a folder that cannot be opened: {error.strerror}"
        skipped.append(Skipped(path, BAD, reason, is_bad=True))

    for name, folders, names in os.walk(folder, onerror=closed):
        here = Path(name)
        for one in [one for one in folders if one.startswith(".") or one in _CACHES]:
            folders.remove(one)
            skipped.append(Skipped(here / one, "hidden", "a hidden folder"))
        for one in names:
            if one.startswith("."):
                skipped.append(Skipped(here / one, "hidden", "a hidden file", glob=".*"))
            else:
                files.append(here / one)
    return sorted(files), skipped


def _skipped(path: Path, text_key: str | None) -> Skipped | None:
    """Return a file of a folder with the reason why it is not read; None if it is read."""
    kind = textfiles.kind(path)
    packed = path.suffix.lower() if path.suffix.lower() in unpacking.SUFFIXES else ""
    label = kind + packed or "without suffix"
    if kind in tables.CSV_SUFFIXES and not text_key:
        return Skipped(path, label, "a table; --text-key names the column of its text")
    if kind in DATA_SUFFIXES:
        of_program = "data of a program; a glob reads it as it stands"
        return Skipped(path, label, of_program, glob=f"*{path.suffix}")
    if kind in textfiles.TEXT_SUFFIXES or kind in tables.CSV_SUFFIXES:
        return None  # reading it reports the error
    try:
        start = textfiles.head_of(path)
    except (DataError, EnvironmentLacks) as error:
        return Skipped.bad(path, error)
    reason = encodings.why_no_text(start)
    return None if reason is None else Skipped(path, label, reason)


def summary(n_read: int, skipped: Sequence[Skipped]) -> str:
    """Say in one line how many files are skipped, by kind.

    >>> of_kind = Skipped(Path("a.png"), ".png", "not text")
    >>> summary(331, [of_kind] * 138 + [Skipped.empty(Path("b.txt"))])
    '139 of 470 files skipped: 138 .png, 1 empty'
    """
    counts = Counter(one.kind for one in skipped).most_common()
    kinds = [
        f"{n} that {kind}" if kind == BAD else f"{n} {printable(kind)}"
        for kind, n in counts[:_KINDS]
    ]
    if rest := sum(n for _, n in counts[_KINDS:]):
        kinds.append(f"{rest} of other kinds")
    return f"{len(skipped)} of {n_read + len(skipped)} files skipped: {', '.join(kinds)}"


def named(skipped: Sequence[Skipped], folder: Path | None) -> str:
    """Name the bad files, each with its fault; empty if there are none.

    Args:
        skipped: all skipped files.
        folder: their folder, which is left out of their names.
    """
    names: dict[str, list[str]] = {}
    n_left_out = n_characters = 0
    for one in sorted(skipped, key=lambda one: one.reason == EMPTY):  # empty files come last
        if not one.is_bad:
            continue
        reason = one.reason.partition("; ")[0]
        inside = folder is not None and one.path.is_relative_to(folder)
        name = printable(one.path.relative_to(folder) if folder and inside else one.path)
        n_characters += len(name) + (0 if reason in names else len(reason))
        enough = reason == EMPTY and len(names.get(EMPTY, ())) >= _NAMED
        if enough or n_characters > _MOST_CHARACTERS:
            n_left_out += 1
        else:
            names.setdefault(reason, []).append(name)
    parts = [f"{', '.join(of_reason)}: {reason}" for reason, of_reason in names.items()]
    return "; ".join([*parts, *([f"and {n_left_out} more"] if n_left_out else [])])
