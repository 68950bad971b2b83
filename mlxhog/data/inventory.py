"""What a corpus is made of, file by file: which are read, from which field, and which are not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlxhog.data import corpora, tables, textfiles


@dataclass(frozen=True)
class TextFile:
    """A file whose text is read.

    Attributes:
        path: as the corpus was asked for.
        n_bytes: on the disk.
        field: the key or column of its first record that holds the text, with a plus between two;
            None for a file that is text itself.
        not_utf8: offset of the first byte, unpacked, that is not UTF-8; None where all are.
    """

    path: str
    n_bytes: int
    field: str | None
    not_utf8: int | None


@dataclass(frozen=True)
class Inventory:
    """The files of a corpus.

    Attributes:
        source: what it was asked for by.
        field: of a data set, the column that holds the text.
        files: those that are read.
        skipped: path and reason of those that are not.
    """

    source: str
    field: str | None
    files: tuple[TextFile, ...]
    skipped: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, spec: str, text_key: str | None = None) -> Inventory:
        """Look at a corpus; arguments and errors are those of `corpora.find`.

        Raises:
            DataError: a file cannot be read.
        """
        corpus = corpora.find(spec, text_key)
        return cls(
            corpus.source,
            _joined(corpus.keys),
            tuple(_look(path, text_key) for path in corpus.files),
            tuple((str(path), reason) for path, reason in corpus.skipped),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "source": self.source,
            "field": self.field,
            "files": [asdict(file) for file in self.files],
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
        }


def _look(path: Path, text_key: str | None) -> TextFile:
    field = not_utf8 = None
    if textfiles.kind(path) in textfiles.RECORD_SUFFIXES:
        _, record = next(textfiles.records(path, text_key), ("", {}))
        field = _joined(textfiles.text_keys(record, text_key))
    if textfiles.kind(path) != tables.PARQUET_SUFFIX:
        first = textfiles.not_utf8(path)
        not_utf8 = None if first is None else first[0]
    return TextFile(str(path), path.stat().st_size, field, not_utf8)


def _joined(keys: tuple[str, ...]) -> str | None:
    return " + ".join(keys) or None
