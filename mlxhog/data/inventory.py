"""What a corpus is made of, file by file: which are read, from which field, and which are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlxhog.data import corpora, tables, textfiles

LOOKED_AT = 100
"""First records of a file whose fields are compared."""

_PLUS = " + "


@dataclass(frozen=True)
class TextFile:
    """A file whose text is read.

    Attributes:
        path: as the corpus was asked for.
        n_bytes: on the disk.
        field: the key or column that holds the text, with a plus between two, of most of its first
            `LOOKED_AT` records; None for a file that is text itself.
        not_utf8: offset of the first byte, unpacked, that is not UTF-8; None where all are.
        fields: how many of these records have their text in which field.
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
    fields, not_utf8 = dict[str, int](), None
    if textfiles.kind(path) in textfiles.RECORD_SUFFIXES:
        found = textfiles.fields(path, text_key, LOOKED_AT)
        fields = {_PLUS.join(keys): count for keys, count in found.items()}
    if textfiles.kind(path) != tables.PARQUET_SUFFIX:
        first = textfiles.not_utf8(path)
        not_utf8 = None if first is None else first[0]
    return TextFile(str(path), path.stat().st_size, next(iter(fields), None), not_utf8, fields)


def _joined(keys: tuple[str, ...]) -> str | None:
    return _PLUS.join(keys) or None
