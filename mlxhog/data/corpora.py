"""Corpora by name; only `hf:NAME` may download anything.

    sotu                    the bundled corpus: 233 State of the Union addresses
    FILE, FOLDER, GLOB      the user's own text
    hf:NAME, hf:FOLDER      a data set of the package `datasets`: a name on the hub, or a
                            folder with data files or of `save_to_disk`; a comma and the name of a
                            subset may follow

Several names, one per line, are one corpus. If some have validation text, it is the only one.

docs/own-text.md says which files of a folder are read, subfolders included. A file that looks like
text and cannot be read is a bad file, which is skipped and named in a message. A file that `--data`
itself names is read as it is. Only the first of equal files is read, so no copy of a training file
is in the validation set.
"""

import glob
import hashlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from mlxhog.base import darwin
from mlxhog.base.paths import expanded, printable
from mlxhog.base.quantities import format_bytes
from mlxhog.data import records, sotu, textfiles, validation_set
from mlxhog.data.sotu import SOTU
from mlxhog.data.split import CUTS, Scan
from mlxhog.errors import DataError, EnvironmentLacks, nearest, visible

Documents = Callable[[], Iterator[bytes]]
"""Yields the documents from the start, in a fixed order, at each call."""

Show = Callable[[Callable[[], str]], object]
"""Shows the progress from time to time; called often, such as `StatusLine.tick`."""

PSEUDO = frozenset(
    "proc sysfs devfs devtmpfs devpts cgroup cgroup2 debugfs tracefs securityfs pstore bpf "
    "configfs mqueue hugetlbfs fusectl binfmt_misc efivarfs rpc_pipefs selinuxfs nsfs".split()
)
"""File systems without a disk: reading their files may never end, or act on a device."""

NO_TEXT = "no text in it"  # the reason why an empty file is skipped
VAL_SPLITS = ("validation", "valid", "val", "dev")
_COPIES = re.compile(
    r".*~|~(\$|lock\.|wr[a-z]\d).*|#.*#|desktop\.ini|(eh)?thumbs\.db|icon\r"
    r"|.*\.(bak|bk|bkp|backup|old|orig|rej|save|tmp|temp|autosave|asv|wbk|crdownload)[.~]?\d*"
    r"|.*\.([^.]*-)?sw[nopx]",
    re.I,
).fullmatch
"""Files of editors and file managers beside the user's."""
_MAX_NOTED = 5  # files of a reason in a note
_MAX_BAD = 50  # files of a reason in an error


@dataclass(frozen=True)
class Skipped:
    """A file that is not read, or a hidden folder."""

    path: Path
    reason: str  # perhaps with the way to its text, behind a semicolon
    is_bad: bool = False  # whether it should be text, but is damaged, unreadable or empty
    lacks: bool = False  # whether a package would read it

    @classmethod
    def bad(cls, path: Path, error: DataError | EnvironmentLacks) -> "Skipped":
        """Return a file whose reader raised an error that begins with its path and line."""
        # The text of an error has no character that a terminal cannot show.
        reason = str(error).removeprefix(visible(str(path)))
        reason = re.sub(r"^:(\d+): ?", r"line \1: ", reason)
        lacks = isinstance(error, EnvironmentLacks)
        return cls(path, reason.lstrip(",: ").removeprefix("is "), is_bad=True, lacks=lacks)

    def to_json(self) -> dict[str, str]:
        """Return path and reason as JSON types."""
        return {"path": printable(self.path), "reason": self.reason}


@dataclass(frozen=True)
class TextSource:
    """Text that is read as a whole: a file, a split of a data set, or the bundled corpus."""

    name: str  # of the file or the text, for messages
    read: Documents
    source: str  # the user's name for the corpus, folder or glob that it comes from
    path: Path | None = None  # of its file
    validation: bool = False
    selected: bool = False  # by a folder or a glob, so that a bad file can be left out
    separators: set[str] = field(default_factory=set, compare=False)  # once read
    version: object = None  # text without a path is the same if this is; None: perhaps not

    def stamp(self) -> tuple[object, float]:
        """Return a value that changes with the text, and the time of its last change."""
        file: tuple[int, ...] = ()
        changed_s = math.inf if self.version is None else 0.0
        with suppress(OSError):  # reading it says so
            if self.path:
                at = self.path.stat()
                file = (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
                changed_s = max(at.st_mtime, at.st_ctime)
        return (self.name, self.validation, self.version, file), changed_s


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, some of which may be the validation split."""

    source: str  # the user's name for it; a path is made absolute
    parts: tuple[TextSource, ...]
    skipped: tuple[Skipped, ...] = ()  # other files of its folders
    folder: Path | None = None  # that selected its files; None for several or none

    @property
    def has_validation(self) -> bool:
        """Whether it brings its own validation text."""
        return any(one.validation for one in self.parts)

    def files(self, *, validation: bool = False) -> list[Path]:
        """Return the files of training text, or of validation text by name."""
        return [one.path for one in self.parts if one.path and one.validation == validation]

    def mapped(self, change: Callable[[Iterable[bytes], str], Iterator[bytes]]) -> "Corpus":
        """Return a corpus whose documents `change` makes of a part's documents and name."""

        def changed(one: TextSource) -> TextSource:
            return replace(one, read=lambda: change(one.read(), one.name))

        return replace(self, parts=tuple(map(changed, self.parts)))

    def notes(
        self, listed_by: str = "--dry-run", before: Container[str] = frozenset()
    ) -> list[str]:
        """Return notes on validation files by name, skipped files, and separators of read text."""
        notes = list[str]()
        if n_files := sum(bool(one.separators) for one in self.parts):
            separators = sorted({repr(mark)[1:-1] for one in self.parts for mark in one.separators})
            notes.append(
                f"{' and '.join(separators)} in {n_files} of {len(self.parts)} files: documents "
                "are cut there, and the separators are left out"
            )
        if validation := self.files(validation=True):
            notes.append(f"validation text, by name: {self._names(validation, _MAX_NOTED)}")
        return notes + self.skipped_note(listed_by, before)

    def skipped_note(self, listed_by: str, before: Container[str]) -> list[str]:
        """Return a note on skipped files, with the number alone of those of `before`."""
        new = tuple(one for one in self.skipped if printable(one.path) not in before)
        n_before = len(self.skipped) - len(new)
        said = [f"{n_before} files skipped as before"] * bool(n_before)
        said += [replace(self, skipped=new).skipped_files(_MAX_NOTED)] * bool(new)
        refuses = "; --strict-data refuses bad files" * any(one.is_bad for one in new)
        return [f"{'; '.join(said)}; {listed_by} lists them{refuses}"] if said else []

    def skipped_files(self, most: int = _MAX_BAD) -> str:
        """Return the skipped files by reason, `most` of each; bad ones first."""
        names = defaultdict[str, list[Path]](list)
        for one in sorted(self.skipped, key=lambda one: not one.is_bad):
            # The way out of a bad file names the file.
            names[one.reason.partition("; ")[0] if one.is_bad else one.reason].append(one.path)
        reasons = (f"{self._names(paths, most)}: {reason}" for reason, paths in names.items())
        n_files = sum(one.path is not None for one in self.parts) + len(self.skipped)
        return f"{len(self.skipped)} of {n_files} files skipped: {'; '.join(reasons)}"

    def in_brackets(self) -> str:
        """Return the notes in brackets, for an error about missing text, or ""."""
        return f" ({'; '.join(notes)})" if (notes := self.notes()) else ""

    def _names(self, paths: Sequence[Path], most: int) -> str:
        folder, rest = self.folder or Path(), f" and {len(paths) - most} more"
        inside = (
            one.relative_to(folder) if one.is_relative_to(folder) else one for one in paths[:most]
        )
        return ", ".join(map(printable, inside)) + rest * (len(paths) > most)


# -- from a name to a corpus -----------------------------------------------------------------------


def show_nothing(text: Callable[[], str]) -> None:
    """Show nothing."""


def find(
    spec: str, text_key: str | None = None, show: Show = show_nothing,
    separator: str | None = textfiles.AUTO,
) -> Corpus:  # fmt: skip
    """Return the corpus that `spec` names, without reading its text yet.

    `text_key` and `separator` are as in `textfiles.documents`; `show` gets the progress in folders.

    Raises:
        DataError: no corpus or path of that name, a folder without text, not a regular file.
        ConfigError: the path begins with the home of a user whom the system does not know.
        EnvironmentLacks: a data set needs a package that is not installed.
    """
    if not spec.removeprefix("hf:").strip():
        raise DataError(f"the corpus is {spec!r}; name {SOTU}, or a path")
    if len(specs := names_of(spec)) > 1:
        members = [find(one, text_key, show, separator) for one in specs]
        return Corpus(
            ", ".join(one.source for one in members),
            tuple(part for one in members for part in one.parts),
            tuple(file for one in members for file in one.skipped),
        )
    (spec,) = specs
    if spec == SOTU:
        return Corpus(SOTU, (TextSource(SOTU, sotu.documents, SOTU, version=SOTU),))
    if spec.startswith("hf:"):
        return _data_set(spec.removeprefix("hf:"), text_key, separator)
    path = expanded(spec)
    source = os.path.abspath(path)
    if path.is_dir():
        return _folder(source, _on_disk(path), text_key, separator, show)
    if path.exists() or path.is_symlink():  # reading a broken link says so
        return Corpus(source, (_part(_on_disk(path), source, text_key, separator),))
    if glob.has_magic(str(path)):
        matches = (Path(one) for one in glob.glob(str(path), recursive=True))
        if files := sorted(_on_disk(one) for one in matches if not one.is_dir()):
            return _selected(source, files, text_key, separator)
        raise DataError(
            f"no file matches {spec!r} in {Path.cwd()}; quote the pattern, or name a folder"
        )
    parent, known = path.parent, [SOTU] * (path.parent == Path())
    if parent.is_dir():
        known += [one.name for one in parent.iterdir() if not one.name.startswith(".")]
    near = nearest(path.name, known)
    hint = f"did you mean {str(parent / near)!r}?" if near else ""
    raise DataError(
        f"no corpus, file or folder {spec!r}; {hint or f'name {SOTU}, a file, a folder or a glob'}"
    )


def _part(
    path: Path, source: str, text_key: str | None, separator: str | None, **how: bool
) -> TextSource:
    separators = set[str]()

    def read() -> Iterator[bytes]:
        every = textfiles.documents(path, text_key, separator, split=True, separators=separators)
        return (text for _, text in every)

    return TextSource(str(path), read, source, path, **how, separators=separators)


@cache
def _pseudo_devices() -> frozenset[int]:
    import psutil

    devices = set[int]()
    with suppress(OSError):
        for one in psutil.disk_partitions(all=True):
            if one.fstype in PSEUDO:
                with suppress(OSError):
                    devices.add(os.stat(one.mountpoint).st_dev)
    return frozenset(devices)


def _on_disk(path: Path) -> Path:
    if (path.is_file() or path.is_dir()) and path.stat().st_dev in _pseudo_devices():
        raise DataError(
            f"{path} is in a pseudo file system of the kernel, whose files may never end; name "
            "text on a disk"
        )
    return path


def _folder(
    source: str, folder: Path, text_key: str | None, separator: str | None, show: Show
) -> Corpus:
    files, skipped = list[Path](), list[Skipped]()
    pseudo = _pseudo_devices()

    def progress() -> str:
        n = len(files) + len(skipped)
        return f"looking for text in {folder}: {n:,} files seen, {len(skipped):,} skipped; {here}"

    def closed(error: OSError) -> None:
        reason = f"a folder that cannot be opened: {darwin.reason(error)}"
        skipped.append(Skipped(Path(error.filename), reason, is_bad=True))

    for name, folders, names in os.walk(folder, onerror=closed):
        here = Path(name)
        for one in folders[:]:
            with suppress(OSError):  # it was removed, or cannot be opened, as `closed` says
                if os.lstat(here / one).st_dev in pseudo:
                    folders.remove(one)
                    skipped.append(Skipped(here / one, "a pseudo file system of the kernel"))
        hidden = {one for one in (*folders, *names) if one[0] == "." or one == "__pycache__"}
        skipped += [Skipped(here / one, "hidden") for one in hidden]
        copies = {one for one in names if one not in hidden and _COPIES(one)}
        skipped += [Skipped(here / one, "a copy or a setting of a program") for one in copies]
        hidden |= copies
        folders[:] = {*folders} - hidden
        links = (here / one for one in folders if (here / one).is_symlink())
        skipped += [Skipped(one, "a link to a folder; --data may name it, too") for one in links]
        for path in (here / one for one in names if one not in hidden):
            show(progress)
            try:
                if reason := textfiles.why_skipped(path, text_key):
                    skipped.append(Skipped(path, reason))
                else:
                    files.append(path)
            except (DataError, EnvironmentLacks) as error:
                skipped.append(Skipped.bad(path, error))
    skipped.sort(key=lambda one: one.path)
    if files:
        return _selected(source, sorted(files), text_key, separator, skipped, folder)
    if not skipped:
        raise DataError(f"the folder {folder} holds no files; name a folder with text")
    why = Corpus(source, (), tuple(skipped), folder).skipped_files()
    raise DataError(
        f"the folder {folder} holds no text: {why}; name another folder, or one of these files: "
        "a file that is named is read as it is"
    )


def _selected(
    source: str,
    files: Sequence[Path],
    text_key: str | None,
    separator: str | None,
    skipped: Iterable[Skipped] = (),
    folder: Path | None = None,
) -> Corpus:
    """Return the corpus of files that a folder or a glob selected, divided by their names."""
    root = folder or Path(os.path.commonpath([path.parent for path in files]))
    train, validation, test = validation_set.by_name(files, root)
    reasons = dict.fromkeys(files, f"beside {train[0].name}, the training text")
    reasons |= dict.fromkeys(
        test, "test text, by its name, never trained on; mlxhog eval RUN --data FILE scores it"
    )
    parts = tuple(
        _part(path, source, text_key, separator, validation=is_validation, selected=True)
        for own, is_validation in ((train, False), (validation, True))
        for path in own
    )
    read = {*train, *validation}
    others = (Skipped(path, reason) for path, reason in reasons.items() if path not in read)
    return Corpus(source, parts, (*skipped, *others), folder)


def _data_set(name: str, text_key: str | None, separator: str | None) -> Corpus:
    source, splits = records.data_set(name)
    train = "train" if "train" in splits else next(iter(splits))

    def read(split: str) -> Iterator[bytes]:
        rows = splits[split]
        rows = rows.select_columns(records.columns(rows.column_names, text_key))
        placed = ((f"{source}, {split} row {row}", record) for row, record in enumerate(rows, 1))
        return (text for _, text in textfiles.of_records(placed, text_key, separator, separators))

    separators = set[str]()

    def part(name: str, split: str, **how: Any) -> TextSource:
        version = getattr(splits[split], "_fingerprint", None)
        return TextSource(name, partial(read, split), source, version=version, **how)

    texts = [part(source, train, separators=separators)]
    for split in [one for one in VAL_SPLITS if one in splits][:1]:
        texts.append(part(f"{source}, validation", split, validation=True))
    return Corpus(source, tuple(texts))


def names_of(spec: str) -> list[str]:
    """Return the names of a corpus, a line each."""
    return [one for one in spec.split("\n") if one.strip()]


def _divided(name: str) -> tuple[str, Path | None, str]:
    """Return the path in a name with what stands before and after it.

    `sotu` has none, nor has a data set of the hub, which is relative and not on the disk.
    """
    if name == SOTU:
        return name, None, ""
    if not name.startswith("hf:"):
        return "", expanded(name), ""
    folder, comma, subset = name.removeprefix("hf:").partition(",")
    path = expanded(folder)
    return "hf:", path if path.is_absolute() or path.exists() else None, comma + subset


def full_path(spec: str) -> str | None:
    """Return the name of a corpus with full paths; None without a path."""
    every = [(name, _divided(name)) for name in names_of(spec)]
    full = [
        name if path is None else f"{before}{os.path.abspath(path)}{after}"
        for name, (before, path, after) in every
    ]
    return "\n".join(full) if any(path for _, (_, path, _) in every) else None


def is_missing(spec: str, full: str | None = None) -> bool:
    """Whether a corpus names a path or a glob of which nothing exists.

    `full` is its full path, if known: this tells a data set's folder from one of the hub.
    """

    def is_gone(name: str, recorded: str) -> bool:
        _, path, _ = _divided(name)
        if path is None:
            return _divided(recorded)[1] is not None
        return not (os.path.lexists(path) or glob.glob(str(path), recursive=True))

    names = zip(names_of(spec), names_of(full or spec), strict=False)
    return any(is_gone(*both) for both in names)


# -- reading a corpus ------------------------------------------------------------------------------


def readable(
    corpus: Corpus, *, strict: bool = False, show: Show = show_nothing, cut: int = CUTS[0]
) -> tuple[Corpus, Scan]:
    """Read a corpus once; return it without bad files and copies, and its scan.

    `cut` is the size of the scan's parts.

    Raises:
        DataError: needed text cannot be read; a file is bad and `strict`; or no text is left.
        EnvironmentLacks: needed text requires a package that is not installed.
    """
    scan, texts, skipped = Scan(cut), list[TextSource](), list(corpus.skipped)
    known, sources = dict[bytes, TextSource](), set[str]()

    def progress() -> str:
        read = (
            f"{format_bytes(after.n_bytes)} of text, {len(texts):,} of {len(corpus.parts):,} files"
        )
        return f"reading {read}; {one.name}"

    for one in sorted(corpus.parts, key=lambda one: one.validation):
        after, own = scan.copy(), hashlib.sha256()
        try:
            for document in one.read():
                show(progress)
                after.add(document, validation=one.validation)
                own.update(document)
            if after.n_documents == scan.n_documents and one.selected:
                raise DataError(NO_TEXT)
        except (DataError, EnvironmentLacks) as error:
            if one.path is None or (one.validation and str(error) != NO_TEXT) or not one.selected:
                raise
            skipped.append(Skipped.bad(one.path, error))
            scan.undo()
            continue
        if not one.validation:
            sources.add(one.source)
        first = known.setdefault(own.digest(), one)
        if first is not one and one.path and after.n_documents > scan.n_documents:
            skipped.append(Skipped(one.path, f"equal to {printable(first.name)}"))
            scan.undo()
        else:
            texts.append(one)
            scan = after
            name = os.path.abspath(one.path) if one.path else one.name
            scan.files.append((name, scan.n_documents))
    ordered = tuple(sorted(skipped, key=lambda one: one.path))
    result = replace(corpus, parts=tuple(texts), skipped=ordered)
    for source in dict.fromkeys(one.source for one in corpus.parts if one.source not in sources):
        why = replace(result, parts=()).skipped_files()
        raise DataError(f"{source} has no readable text: {why}; choose other files")
    if strict and any(one.is_bad for one in ordered):
        raise DataError(
            f"{corpus.source} has bad files, and --strict-data refuses them: "
            f"{result.skipped_files()}; repair or remove them, or leave --strict-data "
            "out to skip them"
        )
    if not scan.n_documents:
        raise DataError(f"the corpus {corpus.source!r} has no text; choose other files")
    return result, scan
