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
        advice: why it is not read and the way to its text, the same for all files of its kind;
            empty if it cannot be expected to have text.
    """

    path: Path
    kind: str
    reason: str
    is_bad: bool = False
    glob: str = ""
    advice: str = ""

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
        return cls(path, BAD, reason.lstrip(",: ").removeprefix("is "), is_bad=True)

    @classmethod
    def other(cls, path: Path, kind: str, what: str, command: str, glob: str = "") -> Skipped:
        """A file of another format, such as a document or an archive."""
        ways = (f"{what}; {encodings.way_out(one, command)}" for one in (path, Path("FILE")))
        reason, advice = ways if command else (what, "")
        return cls(path, kind, reason, glob=glob, advice=advice)

    @classmethod
    def empty(cls, path: Path) -> Skipped:
        """A file that is empty, or has only white space."""
        return cls(path, "empty", EMPTY, is_bad=True)


def look(folder: Path, text_key: str | None) -> tuple[tuple[Path, ...], tuple[Skipped, ...]]:
    """Return the files of a folder that are text, and the others, each in the order of paths.

    Args:
        folder: the folder, read with its subfolders.
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
    """Return the files of a folder in the order of paths, and the entries that are not entered.

    These are hidden or cannot be opened, or they are links to what is read without them.
    """
    files, skipped = list[Path](), list[Skipped]()

    def closed(error: OSError) -> None:
        path = Path(error.filename)
        reason = f"a folder that cannot be opened: {error.strerror}"
        skipped.append(Skipped(path, BAD, reason, is_bad=True))

    roots, entered = [folder], set[str]()
    for root in roots:  # links are appended, and are read after the folders that are none
        real = os.path.realpath(root)
        above = Path(os.path.realpath(root.parent)).is_relative_to(real)
        if root != folder and (above or real in entered):
            skipped.append(_linked(root, "above it" if above else "that is read already"))
            continue
        for name, folders, names in os.walk(root, onerror=closed):
            here, real_here = Path(name), os.path.realpath(name)
            if real_here in entered:
                skipped.append(_linked(here, "that is read already"))
                folders.clear()
                continue
            entered.add(real_here)
            for one in sorted(folders):
                if one.startswith(".") or one in _CACHES:
                    skipped.append(Skipped(here / one, "hidden", "a hidden folder"))
                    folders.remove(one)
                elif (here / one).is_symlink():
                    roots.append(here / one)  # os.walk does not enter it
            for one in names:
                if one.startswith("."):
                    skipped.append(Skipped(here / one, "hidden", "a hidden file", glob=".*"))
                else:
                    files.append(here / one)
    kept, linked = once(files)
    return kept, [*skipped, *linked]


def once(files: Iterable[Path]) -> tuple[list[Path], tuple[Skipped, ...]]:
    """Return files in the order of paths, without links to others of them and paths over links."""
    by_file, skipped = dict[str, Path](), list[Skipped]()
    for path in sorted(files, key=lambda path: (path.is_symlink(), len(path.parts), path)):
        first = by_file.setdefault(os.path.realpath(path), path)
        if first != path:
            advice = f"the same file as {printable(first)}"
            skipped.append(Skipped(path, "linked", advice, advice=advice))
    return sorted(by_file.values()), tuple(skipped)


def _linked(path: Path, where: str) -> Skipped:
    reason = f"a link to a folder {where}"
    return Skipped(path, "linked", reason, advice=f"{printable(path)} is {reason}")


def _skipped(path: Path, text_key: str | None) -> Skipped | None:
    """Return a file of a folder with the reason why it is not read; None if it is read."""
    kind = textfiles.kind(path)
    packed = path.suffix.lower() if path.suffix.lower() in textfiles.PACKED_SUFFIXES else ""
    label = kind + packed or "without suffix"
    if kind in tables.CSV_SUFFIXES and not text_key:
        return Skipped(path, label, "a table; --text-key names the column of its text")
    if kind in encodings.MARKUP:
        return Skipped.other(path, label, *encodings.MARKUP[kind], glob=f"*{path.suffix}")
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
    return Skipped(path, label, reason, advice=advice) if reason else None


def left_out(skipped: Sequence[Skipped]) -> str:
    """Say which skipped files may have text, and the way to it; empty if none has.

    >>> left_out([Skipped.other(Path("a.pdf"), ".pdf", "a PDF document", "pdftotext {0}")] * 2)
    '2 .pdf (a PDF document; unpack or convert it: pdftotext FILE)'
    """
    kinds = Counter((one.kind, one.advice) for one in skipped if one.advice).most_common()
    parts = [f"{n} {printable(kind)} ({advice})" for (kind, advice), n in kinds[:_KINDS]]
    return ", ".join([*parts, *(["and others"] if len(kinds) > _KINDS else [])])


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
