"""Finding a corpus by its name, and listing its files; only `hf:NAME` may download anything.

    sotu                    233 State of the Union addresses, in the package
    py:stdlib               the running interpreter's standard library
    py:site                 every .py of the active environment
    FILE, FOLDER, GLOB      the user's own text; the prefixes `file:` and `dir:` make it explicit
    hf:NAME, hf:FOLDER      a data set that the package `datasets` loads, see `tables.DataSet`

A folder with `train.jsonl` and `valid.jsonl` (mlx-lm's layout) brings its own held-out text, and
so does a data set with a split called validation.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib.resources
import json
import lzma
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from mlxhog.data import folders, records, tables, textfiles
from mlxhog.data.encodings import quoted
from mlxhog.data.folders import Skipped
from mlxhog.errors import DataError, EnvironmentLacks
from mlxhog.files.paths import expanded

Documents = Callable[[], Iterator[bytes]]
"""Reads the documents from the start, in their fixed order, each time it is called."""

_VALIDATION_NAMES = ("valid.jsonl", "val.jsonl", "validation.jsonl")


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
        source: the user's name for it; a path is made absolute.
        documents: reads the documents; without `validation` some of them will be held out.
        validation: reads the held-out documents, if the corpus has its own.
        files: its files, if it consists of files.
        skipped: other files of its folder, each with the reason.
        keys: for a data set, the columns of its first row that hold the text.
        read: reads the documents of one of `files`, if a folder or a glob selected them, so that a
            bad file can be left out; None if every file is needed.
        folder: the folder that selected the files.
    """

    source: str
    documents: Documents
    validation: Documents | None = None
    files: tuple[Path, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    keys: tuple[str, ...] = ()
    read: Callable[[Path], Iterator[bytes]] | None = None
    folder: Path | None = None

    @classmethod
    def chosen(
        cls,
        source: str,
        files: Sequence[Path],
        text_key: str | None,
        *,
        skipped: tuple[Skipped, ...] = (),
        folder: Path | None = None,
    ) -> Self:
        """The corpus of the files that a folder or a glob selected."""
        read = partial(textfiles.documents, text_key=text_key)
        documents = partial(_read_all, files, read)
        return cls(source, documents, files=tuple(files), skipped=skipped, read=read, folder=folder)

    def notes(self, listed_by: str = "--dry-run") -> list[str]:
        """Say which files are skipped and why: a line of counts, and the bad files by name.

        Args:
            listed_by: the option that lists all of them.
        """
        if not self.skipped:
            return []
        notes = [f"{folders.summary(len(self.files), self.skipped)}; {listed_by} lists them"]
        if bad := folders.named(self.skipped, self.folder):
            notes.append(f"bad files: {bad}; --strict-data refuses them")
        return notes

    def in_brackets(self) -> str:
        """The notes in brackets, for an error about missing text; empty if no file is skipped."""
        return f" ({'; '.join(self.notes())})" if self.skipped else ""


def find(spec: str, text_key: str | None = None) -> Corpus:
    """Return the corpus that `spec` names, without reading its text yet.

    Args:
        spec: a name of the list above, a path, or a glob.
        text_key: the key of a record, or column of a table, with the text; see
            `textfiles.documents`.

    Raises:
        DataError: no corpus or path of that name, a folder without text, or not a regular file.
        ConfigError: the path begins with the home of a user whom the system does not know.
        EnvironmentLacks: a data set needs a package that is not installed.
    """
    if not spec.removeprefix("file:").removeprefix("dir:").removeprefix("hf:").strip():
        raise DataError(f"the corpus is {spec!r}; name one of {', '.join(_NAMED)}, or a path")
    if spec in _NAMED:
        return _NAMED[spec]()
    if spec.startswith("hf:"):
        return _data_set(spec.removeprefix("hf:"), text_key)
    path = expanded(spec.removeprefix("file:").removeprefix("dir:"))
    if path.is_dir():
        return _folder(path, text_key)
    if path.exists() or path.is_symlink():  # reading a broken link says so
        source = os.path.realpath(path)
        return Corpus(
            source, lambda: textfiles.documents(path, text_key, split=True), files=(path,)
        )
    if glob.has_magic(str(path)):
        matches = glob.glob(str(path), recursive=True)
        files = sorted(Path(match) for match in matches if not os.path.isdir(match))
        if not files:
            raise DataError(
                f"no file matches {spec!r} in {Path.cwd()}; quote the pattern, or name a folder"
            )
        return Corpus.chosen(str(path.absolute()), files, text_key)
    raise DataError(_unknown(spec, path))


def parts(corpus: Corpus, text_key: str | None = None) -> list[Corpus]:
    """Return each file of a corpus as its own corpus; a corpus without files is one part.

    Args:
        corpus: as `find` or `checked` returned it.
        text_key: as for `find`.
    """
    if len(corpus.files) < 2:
        return [corpus]
    return [find(f"file:{path}", text_key) for path in corpus.files]


def readable(spec: str, text_key: str | None = None, *, strict: bool = False) -> Corpus:
    """Return a corpus without its bad files; arguments and errors as of `find` and `checked`."""
    corpus = find(spec, text_key)
    if corpus.read is None:
        return corpus
    return checked(corpus, lambda documents: sum(1 for _ in documents), strict=strict)


def checked(
    corpus: Corpus, take: Callable[[Iterator[bytes]], int], *, strict: bool = False
) -> Corpus:
    """Read a corpus once, and return it without its bad files.

    Args:
        corpus: its held-out text is not read.
        take: reads the documents of the corpus, or of one file, and returns their number. If it
            raises an error of reading, it must have kept nothing of that file.
        strict: whether bad files are refused.

    Raises:
        DataError: needed text cannot be read; a file is bad and `strict`; or no text is left.
        EnvironmentLacks: needed text requires a package that is not installed.
    """
    if corpus.read is None:
        take(corpus.documents())
        return corpus
    files, skipped = list[Path](), list(corpus.skipped)
    for path in corpus.files:
        try:
            n_documents = take(corpus.read(path))
        except (DataError, EnvironmentLacks) as error:
            skipped.append(Skipped.bad(path, error))
            continue
        if n_documents:
            files.append(path)
        else:
            skipped.append(Skipped.empty(path))
    bad = folders.named(skipped, corpus.folder)
    if not files:
        raise DataError(
            f"{corpus.source} has no readable text: "
            f"{folders.summary(0, skipped)}{bad and f'; {bad}'}; choose other files"
        )
    if strict and bad:
        raise DataError(
            f"{corpus.source} has bad files, and --strict-data refuses them: {bad}; repair or "
            "remove them, or leave --strict-data out to skip them"
        )
    return replace(
        corpus,
        documents=partial(_read_all, files, corpus.read),
        files=tuple(files),
        skipped=tuple(sorted(skipped, key=lambda one: one.path)),
    )


def _sotu() -> Corpus:
    return Corpus("sotu", lambda: (address.text.encode() for address in read_sotu()))


def _stdlib() -> Corpus:
    return Corpus("py:stdlib", lambda: _python([Path(sysconfig.get_path("stdlib"))]))


def _site() -> Corpus:
    roots = dict.fromkeys(Path(sysconfig.get_path(p)) for p in ("purelib", "platlib"))
    return Corpus("py:site", lambda: _python(list(roots)))


_NAMED: dict[str, Callable[[], Corpus]] = {
    "sotu": _sotu,
    "py:stdlib": _stdlib,
    "py:site": _site,
}


def _python(roots: list[Path]) -> Iterator[bytes]:
    """Yield every `.py` below the roots that is text, except installed packages."""
    for root in roots:
        skip_names = {"__pycache__"} | {"site-packages", "dist-packages"} - {root.name}
        for path in sorted(root.rglob("*.py")):
            if skip_names.isdisjoint(path.relative_to(root).parts) and path.is_file():
                # A few test fixtures of the library contain zero bytes on purpose.
                if b"\0" not in path.read_bytes():
                    yield from textfiles.documents(path, None)


def _folder(folder: Path, text_key: str | None) -> Corpus:
    source = str(folder.resolve())
    train = folder / "train.jsonl"
    if train.is_file():
        return _with_validation(folder, train, text_key)
    texts, skipped = folders.look(folder, text_key)
    if not texts:
        raise DataError(_without_text(folder, skipped))
    return Corpus.chosen(source, texts, text_key, skipped=skipped, folder=folder)


def _with_validation(folder: Path, train: Path, text_key: str | None) -> Corpus:
    """The corpus of a folder with a file of training text and a file of held-out text."""
    held_out = next((folder / n for n in _VALIDATION_NAMES if (folder / n).is_file()), None)
    files = (train,) if held_out is None else (train, held_out)
    others, skipped = folders.walk(folder)
    kind = f"beside {train.name}"
    beside = [
        Skipped(path, kind, f"{kind}, which is the training text")
        for path in others
        if path not in files
    ]
    return Corpus(
        str(folder.resolve()),
        lambda: textfiles.documents(train, text_key),
        None if held_out is None else lambda: textfiles.documents(held_out, text_key),
        files=files,
        skipped=(*skipped, *beside),
    )


def _without_text(folder: Path, skipped: Sequence[Skipped]) -> str:
    """Say why a folder without text has none, and how to read its files anyway."""
    if not skipped:
        return f"the folder {folder} holds no files; name a folder with text"
    way_out = "name another folder"
    if one := next((one for one in skipped if one.glob), None):
        pattern = f"{glob.escape(str(one.path.parent))}/{one.glob}"
        way_out = f"a glob reads what it matches: --data {quoted(pattern)}"
    if one := next((one for one in skipped if one.is_table), None):
        way_out = textfiles.column_needed(one.path)
    bad = folders.named(skipped, folder)
    return (
        f"the folder {folder} holds no text: {folders.summary(0, skipped)}{bad and f'; {bad}'}; "
        f"{way_out}"
    )


def _data_set(name: str, text_key: str | None) -> Corpus:
    data_set, columns = tables.DataSet(name), records.columns(text_key)

    def read(split: str) -> Iterator[bytes]:
        for where, record in data_set.records(split, columns):
            for text in textfiles.short_documents([records.record_text(record, text_key, where)]):
                if text.strip():
                    yield text

    held_out = data_set.held_out
    _, first = next(data_set.records(data_set.train, columns), ("", {}))
    return Corpus(
        data_set.source,
        lambda: read(data_set.train),
        None if held_out is None else lambda: read(held_out),
        keys=records.text_keys(first, text_key),
    )


def _read_all(files: Sequence[Path], read: Callable[[Path], Iterator[bytes]]) -> Iterator[bytes]:
    for path in files:
        yield from read(path)


def full_path(spec: str) -> str | None:
    """Return the name of a corpus with its full path; None for one that is no path."""
    kind = next((kind for kind in ("file:", "dir:") if spec.startswith(kind)), "")
    if spec in _NAMED or spec.startswith("hf:"):
        return None
    return kind + os.path.abspath(expanded(spec.removeprefix(kind)))


def is_missing(spec: str) -> bool:
    """Whether a corpus is a path or a glob of which nothing exists."""
    path = full_path(spec)
    if path is None:
        return False
    path = path.removeprefix("file:").removeprefix("dir:")
    return not (os.path.lexists(path) or glob.glob(path, recursive=True))


def _unknown(spec: str, path: Path) -> str:
    names = ", ".join(_NAMED)
    if path.parent != Path() or path.suffix or spec.startswith(("file:", "dir:")):
        parent = path.parent
        if not parent.is_dir():
            return f"no file or folder {str(path)!r}: there is no folder {str(parent)!r}"
        siblings = [p.name for p in parent.iterdir()]
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {str(parent / near[0])!r}?" if near else f"corpora: {names}"
        return f"no file or folder {str(path)!r}; {hint}"
    here = [p.name for p in Path().iterdir() if not p.name.startswith(".")]
    near = difflib.get_close_matches(spec, [*_NAMED, *here], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "a file, a folder or a glob works too."
    return f"no corpus {spec!r}; {hint} Corpora: {names}"


SOTU_FILE = "sotu.jsonl.xz"
SOTU_SHA256 = "ab8e008677790ccf7f1d8db07098de8259e0500055fdd62d7e7632412854c2ac"
"""SHA-256 over the UTF-8 texts, in order, joined by one zero byte."""


@dataclass(frozen=True)
class Address:
    """One address: its speaker, party and year, and its text on one line."""

    year: int
    name: str
    party: str
    text: str


def sotu_digest(addresses: Iterable[Address]) -> str:
    """Return the hexadecimal digest of addresses, to compare with `SOTU_SHA256`."""
    return hashlib.sha256(b"\0".join(a.text.encode() for a in addresses)).hexdigest()


def read_sotu() -> list[Address]:
    """Return the shipped addresses in chronological order.

    Raises:
        DataError: the shipped file is missing or damaged; reinstalling the package repairs it.
    """
    file = importlib.resources.files("mlxhog") / "data" / "texts" / SOTU_FILE
    try:
        lines = lzma.decompress(file.read_bytes()).splitlines()
        addresses = [Address(**json.loads(line)) for line in lines]
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError) as error:
        raise DataError(
            f"the embedded corpus {SOTU_FILE} cannot be read ({error}); reinstall mlxhog"
        ) from error
    check_addresses(addresses, f"the embedded corpus {SOTU_FILE}", "reinstall mlxhog")
    return addresses


def check_addresses(addresses: list[Address], what: str, way_out: str) -> None:
    """Refuse every text except version 0.2.3 of sotu.

    Raises:
        DataError: `what` has another text; the message ends with `way_out`.
    """
    digest = sotu_digest(addresses)
    if digest != SOTU_SHA256:
        raise DataError(
            f"{what} holds {len(addresses)} addresses with digest {digest}, "
            f"expected 233 with {SOTU_SHA256}; {way_out}"
        )


LOOKED_AT = 100
"""Number of first records of a file whose fields are counted."""

_PLUS = " + "


@dataclass(frozen=True)
class TextFile:
    """A file whose text is read.

    Attributes:
        path: path of the file.
        n_bytes: size on the disk.
        field: the key or column with the text in most of the first `LOOKED_AT` records, or two
            with a plus between them; None for a file that is text itself.
        not_utf8: offset in the unpacked file of the first byte that is not UTF-8; None if all are.
        fields: field -> number of these records with their text in it.
    """

    path: str
    n_bytes: int
    field: str | None
    not_utf8: int | None
    fields: Mapping[str, int]


@dataclass(frozen=True)
class Inventory:
    """The files of a corpus.

    Attributes:
        source: the user's name for the corpus.
        field: for a data set, the column with the text.
        files: files that are read.
        skipped: files that are not read.
    """

    source: str
    field: str | None
    files: tuple[TextFile, ...]
    skipped: tuple[Skipped, ...]

    @classmethod
    def of(cls, corpus: Corpus, text_key: str | None = None) -> Inventory:
        """Look at the files of a corpus.

        Args:
            corpus: as `checked` returned it.
            text_key: as for `find`.

        Raises:
            DataError: a file cannot be read.
        """
        return cls(
            corpus.source,
            _joined(corpus.keys),
            tuple(_look(path, text_key) for path in corpus.files),
            corpus.skipped,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "source": self.source,
            "field": self.field,
            "files": [asdict(file) for file in self.files],
            "skipped": [one.to_json() for one in self.skipped],
        }


def _look(path: Path, text_key: str | None) -> TextFile:
    fields, not_utf8 = dict[str, int](), None
    if textfiles.kind(path) in textfiles.RECORD_SUFFIXES:
        counts = textfiles.fields(path, text_key, LOOKED_AT)
        fields = {_PLUS.join(keys): count for keys, count in counts.items()}
    if textfiles.kind(path) != tables.PARQUET_SUFFIX:
        first = textfiles.not_utf8(path)
        not_utf8 = None if first is None else first[0]
    return TextFile(str(path), path.stat().st_size, next(iter(fields), None), not_utf8, fields)


def _joined(keys: tuple[str, ...]) -> str | None:
    return _PLUS.join(keys) or None
