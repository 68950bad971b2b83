"""Finding a corpus by its name, and listing its files; only `hf:NAME` may download anything.

    sotu                    233 State of the Union addresses, in the package
    FILE, FOLDER, GLOB      the user's own text; the prefixes `file:` and `dir:` make it explicit
    hf:NAME, hf:FOLDER      a data set that the package `datasets` loads, see `tables.DataSet`

Several names, one per line, are one corpus: the held-out text is that of those that bring their
own, if any does.

A folder or glob with files called `valid`, `validation`, `val`, `dev` or `test` brings its own
held-out text (`heldout.by_name`), and so does a data set with a split called validation.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

from mlxhog.base.paths import expanded, printable
from mlxhog.data import encodings, folders, heldout, records, tables, textfiles
from mlxhog.data.encodings import quoted
from mlxhog.data.folders import Skipped
from mlxhog.data.sotu import SOTU, read_sotu
from mlxhog.errors import DataError, EnvironmentLacks

Documents = Callable[[], Iterator[bytes]]
"""Reads the documents from the start, in their fixed order, each time it is called."""

EQUAL = "equal to another"
_TEST = "test text"
_MOST = 5  # most files that a note names


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
        source: the user's name for it; a path is made absolute.
        documents: reads the documents; without `validation` some of them will be held out.
        validation: reads the held-out documents, if the corpus has its own.
        files: its files, if it consists of files, without those of `held_out`.
        held_out: files of the held-out text, which their names say.
        unheeded: files of training text whose names say the contrary.
        skipped: other files of its folder, each with the reason.
        keys: for a data set, the columns of its first row that hold the text.
        read: reads the documents of one of `files`, if a folder or a glob selected them, so that a
            bad file can be left out; None if every file is needed.
        folder: the folder that selected the files.
        members: the corpora that it consists of, if several were named.
    """

    source: str
    documents: Documents
    validation: Documents | None = None
    files: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    unheeded: tuple[Path, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    keys: tuple[str, ...] = ()
    read: Callable[[Path], Iterator[bytes]] | None = None
    folder: Path | None = None
    members: tuple[Corpus, ...] = ()

    @classmethod
    def together(cls, members: Sequence[Corpus]) -> Self:
        """The corpus of several.

        Raises:
            DataError: two of them have the same file.
        """
        files = [path for one in members for path in (*one.files, *one.held_out)]
        real = Counter(map(os.path.realpath, files))
        if twice := [path for path, n in real.items() if n > 1]:
            raise DataError(
                f"--data names {printable(Path(twice[0]))} more than once, so that it could be "
                "trained on and held out; name every file and folder once"
            )
        own = [one.validation for one in members if one.validation is not None]
        return cls(
            ", ".join(one.source for one in members),
            lambda: chain.from_iterable(one.documents() for one in members),
            (lambda: chain.from_iterable(read() for read in own)) if own else None,
            files=tuple(path for one in members for path in one.files),
            held_out=tuple(path for one in members for path in one.held_out),
            unheeded=tuple(path for one in members for path in one.unheeded),
            skipped=tuple(skipped for one in members for skipped in one.skipped),
            keys=next((one.keys for one in members if one.keys), ()),
            members=tuple(members),
        )

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
        """The corpus of the files that a folder or a glob selected; their names divide them."""
        root = folder or Path(os.path.commonpath([path.parent for path in files]))
        named = heldout.by_name(files, root)
        read = partial(textfiles.documents, text_key=text_key, split=True)
        beside = f"beside {named.train[0].name}"
        return cls(
            source,
            **_reading(named.train, named.held_out, read),
            unheeded=named.unheeded,
            skipped=(
                *skipped,
                *(Skipped(path, _TEST, "test text, by its name") for path in named.test),
                *(Skipped(path, beside, f"{beside}, the training text") for path in named.beside),
            ),
            folder=folder,
        )

    def mapped(self, change: Callable[[Iterable[bytes], str], Iterator[bytes]]) -> Corpus:
        """Return a corpus whose documents `change` yields.

        Args:
            change: gets the documents and the path of a file, or all documents and the source.
        """
        if self.members:
            return Corpus.together([one.mapped(change) for one in self.members])
        if (read := self.read) is not None:
            return replace(
                self,
                **_reading(self.files, self.held_out, lambda path: change(read(path), str(path))),
            )

        def changed(documents: Documents, name: str) -> Documents:
            return lambda: change(documents(), name)

        name = str(self.files[0]) if self.files else self.source
        return replace(
            self,
            documents=changed(self.documents, name),
            validation=self.validation and changed(self.validation, f"{name}, held-out"),
        )

    def without(
        self,
        skipped: Sequence[Skipped],
        files: Sequence[Path],
        held_out: Sequence[Path],
        strict: bool,
    ) -> Corpus:
        """Return the corpus of some of its files, with the others as skipped.

        Raises:
            DataError: no text is left, or a file is bad and `strict`.
        """
        assert self.read is not None
        bad = folders.named(skipped, self.folder)
        if not files:
            why = [folders.summary(0, skipped), folders.left_out(skipped), bad]
            raise DataError(
                f"{self.source} has no readable text: {'; '.join(filter(None, why))}; choose other "
                "files"
            )
        if strict and bad:
            raise DataError(
                f"{self.source} has bad files, and --strict-data refuses them: {bad}; repair or "
                "remove them, or leave --strict-data out to skip them"
            )
        return replace(
            self,
            **_reading(files, held_out, self.read),
            skipped=tuple(sorted(skipped, key=lambda one: one.path)),
        )

    def notes(self, listed_by: str = "--dry-run") -> list[str]:
        """Say what names decided, which files are skipped and why, and which are mostly markup.

        Args:
            listed_by: the option that lists all of them.
        """
        notes = []
        if self.held_out:
            notes.append(f"held-out text, by name: {self._some(self.held_out)}")
        if tests := [one.path for one in self.skipped if one.kind == _TEST]:
            notes.append(
                f"never trained on, by name: {self._some(tests)}; mlxhog eval RUN --data FILE "
                "scores such a file"
            )
        if self.unheeded:
            notes.append(
                f"training text in spite of its name: {self._some(self.unheeded)}: the other files "
                "have less text, or this has almost none; beside a file named train it counts"
            )
        if equal := [one.path for one in self.skipped if one.kind == EQUAL]:
            notes.append(f"read once, since another file has the same text: {self._some(equal)}")
        files = (*self.files, *self.held_out)
        for kind, n in Counter(map(textfiles.kind, files)).items():
            what, command = encodings.MARKUP.get(kind, ("", ""))
            if command:
                way_out = encodings.way_out(Path("FILE"), command)
                notes.append(f"{n} {kind} read as it stands, with all markup: {what}; {way_out}")
        if self.skipped:
            notes.append(f"{folders.summary(len(files), self.skipped)}; {listed_by} lists them")
        if left_out := folders.left_out(self.skipped):
            notes.append(f"left out: {left_out}")
        if bad := folders.named(self.skipped, self.folder):
            notes.append(f"bad files: {bad}; --strict-data refuses them")
        return notes

    def _some(self, files: Sequence[Path]) -> str:
        """The names of the first of some files, below the folder."""
        inside = self.folder or Path()
        first = [p.relative_to(inside) if p.is_relative_to(inside) else p for p in files[:_MOST]]
        rest = len(files) - len(first)
        return ", ".join(map(printable, first)) + (f" and {rest} more" if rest else "")

    def in_brackets(self) -> str:
        """The notes in brackets, for an error about missing text; empty without notes."""
        return f" ({'; '.join(notes)})" if (notes := self.notes()) else ""


def find(spec: str, text_key: str | None = None) -> Corpus:
    """Return the corpus that `spec` names, without reading its text yet.

    Args:
        spec: a name of the list above, a path, or a glob; or several, one per line.
        text_key: the key of a record, or column of a table, with the text; see
            `textfiles.documents`.

    Raises:
        DataError: no corpus or path of that name, a folder without text, or not a regular file.
        ConfigError: the path begins with the home of a user whom the system does not know.
        EnvironmentLacks: a data set needs a package that is not installed.
    """
    if not spec.removeprefix("file:").removeprefix("dir:").removeprefix("hf:").strip():
        raise DataError(f"the corpus is {spec!r}; name {SOTU}, or a path")
    if len(specs := [one for one in spec.split("\n") if one.strip()]) > 1:
        return Corpus.together([find(one, text_key) for one in specs])
    if spec == SOTU:
        return Corpus(SOTU, lambda: (address.text.encode() for address in read_sotu()))
    if spec.startswith("hf:"):
        return _data_set(spec.removeprefix("hf:"), text_key)
    path = expanded(spec.removeprefix("file:").removeprefix("dir:"))
    if path.is_dir():
        return _folder(path, text_key)
    if path.exists() or path.is_symlink():  # reading a broken link says so
        source = os.path.abspath(path)
        return Corpus(
            source, lambda: textfiles.documents(path, text_key, split=True), files=(path,)
        )
    if glob.has_magic(str(path)):
        matches = glob.glob(str(path), recursive=True)
        files, skipped = folders.once(Path(one) for one in matches if not os.path.isdir(one))
        if not files:
            raise DataError(
                f"no file matches {spec!r} in {Path.cwd()}; quote the pattern, or name a folder"
            )
        return Corpus.chosen(str(path.absolute()), files, text_key, skipped=skipped)
    raise DataError(_unknown(spec, path))


def parts(corpus: Corpus, text_key: str | None = None) -> list[Corpus]:
    """Return each file of a corpus as its own corpus; a corpus without files is one part.

    Args:
        corpus: as `find` or `checked` returned it.
        text_key: as for `find`.
    """
    if corpus.members:
        return [part for one in corpus.members for part in parts(one, text_key)]
    files = (*corpus.files, *corpus.held_out)
    if len(files) < 2:
        return [corpus]
    return [find(f"file:{path}", text_key) for path in files]


def readable(spec: str, text_key: str | None = None, *, strict: bool = False) -> Corpus:
    """Return a corpus without its bad files; arguments and errors as of `find` and `checked`."""
    corpus = find(spec, text_key)
    if corpus.read is None and not corpus.members:
        return corpus
    return checked(corpus, lambda documents, *_: sum(1 for _ in documents), strict=strict)


def checked(
    corpus: Corpus, take: Callable[[Iterator[bytes], bool], int], *, strict: bool = False
) -> Corpus:
    """Read a corpus once, and return it without its bad files and those equal to earlier ones.

    Args:
        corpus: the corpus.
        take: reads the documents of the corpus or of one file, of which its second argument says
            whether they are its own held-out text, and returns their number. If it raises an error,
            it must have kept nothing of that file.
        strict: whether bad files are refused.

    Raises:
        DataError: needed text cannot be read; a file is bad and `strict`; or no text is left.
        EnvironmentLacks: needed text requires a package that is not installed.
    """
    members = corpus.members or (corpus,)
    kept: dict[tuple[int, bool], list[Path]] = {}
    skipped = [list(one.skipped) for one in members]
    known: dict[bytes, Path] = {}
    for is_held_out in (False, True):  # in the order in which they are written, see `prepare`
        for place, one in enumerate(members):
            files = kept[place, is_held_out] = []
            if one.read is None:
                documents = one.validation if is_held_out else one.documents
                if documents is not None:
                    take(documents(), is_held_out)
                continue
            for path in one.held_out if is_held_out else one.files:
                try:
                    n_documents = take(_once(one.read(path), path, known), is_held_out)
                except _EqualFile as equal:
                    why = f"equal to {printable(str(equal))}"
                    skipped[place].append(Skipped(path, EQUAL, why))
                except (DataError, EnvironmentLacks) as error:
                    if is_held_out:
                        raise
                    skipped[place].append(Skipped.bad(path, error))
                else:
                    if n_documents:
                        files.append(path)
                    else:
                        skipped[place].append(Skipped.empty(path))
    checked_members = [
        one if one.read is None else one.without(skipped[k], kept[k, False], kept[k, True], strict)
        for k, one in enumerate(members)
    ]
    return Corpus.together(checked_members) if corpus.members else checked_members[0]


class _EqualFile(Exception):
    """A file has the same text as an earlier one, whose path is the message."""


def _once(documents: Iterable[bytes], path: Path, known: dict[bytes, Path]) -> Iterator[bytes]:
    """Yield the documents of a file, and then refuse it if its text is known.

    Raises:
        _EqualFile: another file has the same text.
    """
    digest, is_empty = hashlib.sha256(), True
    for document in documents:
        digest.update(document)
        is_empty = False
        yield document
    if not is_empty and known.setdefault(digest.digest(), path) != path:
        raise _EqualFile(known[digest.digest()])


def _folder(folder: Path, text_key: str | None) -> Corpus:
    source = os.path.abspath(folder)
    texts, skipped = folders.look(folder, text_key)
    if not texts:
        raise DataError(_without_text(folder, skipped))
    return Corpus.chosen(source, texts, text_key, skipped=skipped, folder=folder)


def _without_text(folder: Path, skipped: Sequence[Skipped]) -> str:
    """Say why a folder without text has none, and how to read its files anyway."""
    if not skipped:
        return f"the folder {folder} holds no files; name a folder with text"
    way_out = "name another folder"
    if any(one.advice for one in skipped):
        way_out = "convert its files, or name another folder"
    elif one := next((one for one in skipped if one.glob), None):
        pattern = f"{glob.escape(str(one.path.parent))}/{one.glob}"
        way_out = f"a glob reads what it matches: --data {quoted(pattern)}"
    if one := next((one for one in skipped if one.is_table), None):
        way_out = textfiles.column_needed(one.path)
    why = [folders.summary(0, skipped), folders.left_out(skipped), folders.named(skipped, folder)]
    return f"the folder {folder} holds no text: {'; '.join(filter(None, why))}; {way_out}"


def _data_set(name: str, text_key: str | None) -> Corpus:
    data_set = tables.DataSet(name)

    def read(split: str) -> Iterator[bytes]:
        for where, record in data_set.records(split, text_key):
            for text in textfiles.short_documents([records.record_text(record, text_key, where)]):
                if text.strip():
                    yield text

    held_out = data_set.held_out
    _, first = next(data_set.records(data_set.train, text_key), ("", {}))
    return Corpus(
        data_set.source,
        lambda: read(data_set.train),
        None if held_out is None else lambda: read(held_out),
        keys=records.text_keys(first, text_key),
    )


def _reading(
    files: Sequence[Path], held_out: Sequence[Path], read: Callable[[Path], Iterator[bytes]]
) -> dict[str, Any]:
    """The fields of a corpus of files."""
    return {
        "documents": partial(_read_all, files, read),
        "validation": partial(_read_all, held_out, read) if held_out else None,
        "files": tuple(files),
        "held_out": tuple(held_out),
        "read": read,
    }


def _read_all(files: Sequence[Path], read: Callable[[Path], Iterator[bytes]]) -> Iterator[bytes]:
    for path in files:
        yield from read(path)


def full_path(spec: str) -> str | None:
    """Return the name of a corpus with its full paths; None for one without a path."""
    names = spec.split("\n")
    return "\n".join(map(_full_path, names)) if any(map(_is_path, names)) else None


def _is_path(spec: str) -> bool:
    return spec != SOTU and not spec.startswith("hf:")


def _full_path(spec: str) -> str:
    kind = next((kind for kind in ("file:", "dir:") if spec.startswith(kind)), "")
    return kind + os.path.abspath(expanded(spec.removeprefix(kind))) if _is_path(spec) else spec


def is_missing(spec: str) -> bool:
    """Whether a corpus names a path or a glob of which nothing exists."""
    paths = [
        _full_path(one).removeprefix("file:").removeprefix("dir:")
        for one in spec.split("\n")
        if _is_path(one)
    ]
    return not all(os.path.lexists(path) or glob.glob(path, recursive=True) for path in paths)


def _unknown(spec: str, path: Path) -> str:
    if path.parent != Path() or path.suffix or spec.startswith(("file:", "dir:")):
        parent = path.parent
        if not parent.is_dir():
            return f"no file or folder {str(path)!r}: there is no folder {str(parent)!r}"
        what, names = f"file or folder {str(path)!r}", [p.name for p in parent.iterdir()]
    else:
        here = [p.name for p in Path().iterdir() if not p.name.startswith(".")]
        what, parent, names = f"corpus {spec!r}", Path(), [SOTU, *here]
    if near := difflib.get_close_matches(path.name, names, n=1):
        return f"no {what}; did you mean {str(parent / near[0])!r}?"
    return f"no {what}; name {SOTU}, a file, a folder or a glob"


LOOKED_AT = 100
"""Number of first records of a file whose fields are counted."""

_PLUS = " + "


def inventory(
    corpus: Corpus,
    text_key: str | None = None,
    held_out_bytes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Look at the files of a corpus, and describe them in JSON types.

        source    the user's name for the corpus
        field     for a data set, the column with the text
        files     files that are read: `path`, `n_bytes` on the disk, and
                  field           the key or column with the text in most of the first `LOOKED_AT`
                                  records, or two with a plus between them; null for text itself
                  fields          field -> number of these records with their text in it
                  not_utf8        offset in the unpacked file of the first byte that is not UTF-8
                  held_out_bytes  bytes of text that are held out; null if they were not counted
        skipped   files that are not read: `path` and `reason`

    Args:
        corpus: as `checked` returned it.
        text_key: as for `find`.
        held_out_bytes: of each file; files that it does not name have none.

    Raises:
        DataError: a file cannot be read.
    """
    files = list[dict[str, Any]]()
    for path in (*corpus.files, *corpus.held_out):
        fields, not_utf8, kind = dict[str, int](), None, textfiles.record_kind(path)
        if kind:
            counts = textfiles.fields(path, text_key, LOOKED_AT)
            fields = {_PLUS.join(keys): count for keys, count in counts.items()}
        if kind != tables.PARQUET_SUFFIX:
            not_utf8 = textfiles.not_utf8(path)
        files.append(
            {
                "path": str(path),
                "n_bytes": path.stat().st_size,
                "field": next(iter(fields), None),
                "not_utf8": not_utf8,
                "fields": fields,
                "held_out_bytes": None,
            }
        )
        if held_out_bytes is not None:
            files[-1]["held_out_bytes"] = held_out_bytes.get(str(path), 0)
    return {
        "source": corpus.source,
        "field": _PLUS.join(corpus.keys) or None,
        "files": files,
        "skipped": [one.to_json() for one in corpus.skipped],
    }
