"""Which files of a folder are text, and messages about the other files.

    a known suffix      text: prose, source code, records (`textfiles.TEXT_SUFFIXES`)
    .csv, .tsv          a table; read if `text_key` names a column
    markup and data     skipped, although the bytes are text (`encodings.MARKUP`)
    .json and others    text or records if the content is

A link to a folder is followed, and no folder is read twice. Hidden files and folders are skipped:
they may hold settings and passwords. A file that looks like text and cannot be read is a bad file.
It is skipped like the others, and messages name it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxhog.base.paths import printable
from mlxhog.data import encodings, tables, textfiles
from mlxhog.errors import DataError, EnvironmentLacks, visible

_CACHES = ("__pycache__",)

_KINDS = 6  # kinds of files that the summary names
_NAMED = 50  # most bad files that a message names, empty ones last

BAD = "that cannot be read"
EMPTY = "no text in it"


@dataclass(frozen=True)
class Skipped:
    """A file that is not read, or a hidden folder.

    Attributes:
        path: its path.
        kind: its kind in the summary.
        reason: why it is not read.
        advice: why it is not read and the way to its text, the same for all files of its kind;
            empty if it cannot be expected to have text.
    """

    path: Path
    kind: str
    reason: str
    advice: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether it should be text, but is damaged, unreadable or empty."""
        return self.kind == BAD or self.reason == EMPTY

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
        # The text of an error has no character that a terminal cannot show.
        reason = str(error).removeprefix(visible(str(path)))
        reason = re.sub(r"^:(\d+): ", r"line \1: ", reason)
        return cls(path, BAD, reason.lstrip(",: ").removeprefix("is "))

    @classmethod
    def other(cls, path: Path, kind: str, what: str, command: str) -> Skipped:
        """A file of another format, such as a document or an archive."""
        ways = (f"{what}; {encodings.way_out(one, command)}" for one in (path, Path("FILE")))
        return cls(path, kind, *(ways if command else (what,)))


def look(folder: Path, text_key: str | None) -> tuple[list[Path], list[Skipped]]:
    """Return the files of a folder and its subfolders that are text, and the others.

    Args:
        folder: the folder.
        text_key: see `corpora.find`.

    Returns:
        Both in the order of paths.
    """
    files, skipped = walk(folder)
    others = {path: one for path in files if (one := _skipped(path, text_key))}
    skipped = sorted([*skipped, *others.values()], key=lambda one: one.path)
    return [path for path in files if path not in others], skipped


def walk(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """Return the files of a folder in the order of paths, and the entries that are not entered.

    These are hidden or cannot be opened, or they are links to what is read without them.
    """
    files, skipped = list[Path](), list[Skipped]()

    def closed(error: OSError) -> None:
        reason = f"a folder that cannot be opened: {error.strerror}"
        skipped.append(Skipped(Path(error.filename), BAD, reason))

    root, entered = Path(os.path.realpath(folder)), set[str]()
    for name, folders, names in os.walk(folder, onerror=closed, followlinks=True):
        here, real = Path(name), os.path.realpath(name)
        above = here != folder and root.is_relative_to(real)
        if above or real in entered:
            reason = f"a link to a folder {'above it' if above else 'that is read already'}"
            skipped.append(Skipped(here, "linked", reason, f"{printable(here)} is {reason}"))
            folders.clear()
            continue
        entered.add(real)
        hidden = [one for one in folders if one.startswith(".") or one in _CACHES]
        skipped += [Skipped(here / one, "hidden", "a hidden folder") for one in hidden]
        others = [one for one in folders if one not in hidden]
        folders[:] = sorted(others, key=lambda one: ((here / one).is_symlink(), one))
        for one in names:
            if one.startswith("."):
                skipped.append(Skipped(here / one, "hidden", "a hidden file"))
            else:
                files.append(here / one)
    files, linked = once(files)
    return files, [*skipped, *linked]


def once(files: Iterable[Path]) -> tuple[list[Path], list[Skipped]]:
    """Return files in the order of paths, without links to others of them and paths over links."""
    by_file, skipped = dict[str, Path](), list[Skipped]()
    for path in sorted(files, key=lambda path: (path.is_symlink(), len(path.parts), path)):
        first = by_file.setdefault(os.path.realpath(path), path)
        if first != path:
            advice = f"the same file as {printable(first)}"
            skipped.append(Skipped(path, "linked", advice, advice))
    return sorted(by_file.values()), skipped


def _skipped(path: Path, text_key: str | None) -> Skipped | None:
    """Return a file of a folder with the reason why it is not read; None if it is read."""
    kind = textfiles.kind(path)
    packed = path.suffix.lower() if path.suffix.lower() in textfiles.PACKED_SUFFIXES else ""
    label = kind + packed or "without suffix"
    if kind in tables.CSV_SUFFIXES and not text_key:
        return Skipped(path, label, "a table; --text-key names the column of its text")
    if kind in encodings.MARKUP:
        return Skipped.other(path, label, *encodings.MARKUP[kind])
    if kind in textfiles.TEXT_SUFFIXES or kind in tables.CSV_SUFFIXES:
        return None  # reading it reports the error
    try:
        start = textfiles.head_of(path)
        if other := encodings.other_format(start):
            return Skipped.other(path, label, *other)
        if encodings.records_in(start) or kind == ".json":
            reason = textfiles.without_text(path, text_key)
            advice = reason.partition(": ")[0]
        else:
            reason, advice = encodings.why_no_text(start) or "", ""
    except (DataError, EnvironmentLacks) as error:
        return Skipped.bad(path, error)
    return Skipped(path, label, reason, advice) if reason else None


def summary(n_read: int, skipped: Sequence[Skipped]) -> str:
    """Say how many files are skipped, by kind, with the way to the text of those that may have any.

    >>> archive = Skipped.other(Path("a.zip"), ".zip", "a zip archive", "unzip {0}")
    >>> summary(331, [archive] * 138 + [Skipped(Path("b.txt"), "empty", EMPTY)])
    '139 of 470 files skipped: 138 .zip (a zip archive; unpack or convert it: unzip FILE), 1 empty'
    """
    counts = Counter((one.kind, one.advice) for one in skipped).most_common()
    kinds = [
        f"{n} {printable(kind)}" + (f" ({advice})" if advice else "")
        for (kind, advice), n in counts[:_KINDS]
    ]
    if rest := sum(n for _, n in counts[_KINDS:]):
        kinds.append(f"{rest} of other kinds")
    return f"{len(skipped)} of {n_read + len(skipped)} files skipped: {', '.join(kinds)}"


def inside(path: Path, folder: Path | None) -> Path:
    """Return a path below a folder without the folder; another path as it is."""
    return path.relative_to(folder) if folder and path.is_relative_to(folder) else path


def named(skipped: Sequence[Skipped], folder: Path | None) -> str:
    """Name the bad files, each with its fault; empty if there are none.

    Args:
        skipped: all skipped files.
        folder: their folder, which is left out of their names.
    """
    bad = sorted((one for one in skipped if one.is_bad), key=lambda one: one.reason == EMPTY)
    names: dict[str, list[str]] = {}
    for one in bad[:_NAMED]:
        reason, name = one.reason.partition("; ")[0], printable(inside(one.path, folder))
        names.setdefault(reason, []).append(name)
    parts = [f"{', '.join(of_reason)}: {reason}" for reason, of_reason in names.items()]
    return "; ".join([*parts, *([f"and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else [])])
