"""Segments of tokens in a run's folder: a segment appears whole, and never changes.

    stream/00000001.bin          the tokens of segment 1, little endian uint32, row after row
    stream/00000001.rows         (rows, 2) int64: number of tokens of a row, and of its first labels
                                 that are not trained
    stream/00000001.json         the header; its rename publishes the segment
    stream/00000001-00000040.*   the same for segments 1 to 40, merged into one

Tickets are numbered through all segments: a segment has `tickets` of them from `first_ticket` on.
Each has `batch_size` rows; the last may have fewer, since it ends with the segment. A merged
segment has the same tickets as its parts. When its header exists, the segments in the range of its
name no longer count; files of them that a kill left are removed by the next holder of the run's
lock.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import IGNORED, Batch, empty_rows
from mlxhog.errors import DataError, shown
from mlxhog.files import plain_json

FORMAT = 1
WAY_OUT = "the stream of this run is damaged; follow the files again in a new run"
MOST_TICKETS = 1 << 53
NAME = re.compile(r"(\d{8})(?:-(\d{8}))?(\.bin|\.rows|\.json)")


@dataclass(frozen=True)
class TrainingRow:
    """One sequence to train on.

    Attributes:
        ids: its tokens, (n,) int32, at least 2.
        masked: number of its first labels that are not trained, below n - 1.
    """

    ids: NDArray[np.int32]
    masked: int = 0


@dataclass(frozen=True)
class SourceFile:
    """A file whose text is in a segment, or which was refused.

    Attributes:
        name: path below the followed folder.
        n_bytes: its size when it was read.
        changed_ns: its modification time when it was read.
        refused: why the file is not trained; None if it is.
    """

    name: str
    n_bytes: int
    changed_ns: int
    refused: str | None = None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Return a file from the fields of a header.

        Raises:
            ValueError, TypeError: the fields do not describe a file.
        """
        source = cls(**fields)
        texts = (source.name, "" if source.refused is None else source.refused)
        numbers = (source.n_bytes, source.changed_ns)
        if any(type(text) is not str for text in texts) or any(type(n) is not int for n in numbers):
            raise ValueError(f"a source is {shown(dict(fields))}")
        return source


@dataclass(frozen=True, eq=False)
class StreamSegment:
    """A published segment; see the module for the files.

    Attributes:
        path: path of its header.
        first: first segment number in the range of its name.
        last: last segment number in that range.
        first_ticket: its first ticket.
        parts: number of rows and batch size of each segment merged into it, (parts, 2).
        n_tokens: number of its tokens.
        sources: files whose text it has.
        examples_end: bytes of `examples.jsonl` that are in this segment and those before.
    """

    path: Path
    first: int
    last: int
    first_ticket: int
    parts: NDArray[np.int64]
    n_tokens: int
    sources: tuple[SourceFile, ...]
    examples_end: int

    @classmethod
    def read(cls, path: Path, *, verify: bool = False) -> Self:
        """Return the segment of a header.

        Args:
            path: path of the header, also the `.part` file of an unpublished segment.
            verify: whether to compare its digest, which reads all tokens.

        Raises:
            DataError: the segment is damaged or missing.
        """
        name = NAME.match(path.name)
        assert name is not None, f"{path} is not a header"
        first, last = int(name[1]), int(name[2] or name[1])
        try:
            header = plain_json.read(path)
            if not isinstance(header, dict) or _count(header, "format") != FORMAT:
                raise ValueError(f"it is not a header of format {FORMAT}")
            n_tokens, n_rows = (_count(header, key) for key in ("tokens", "rows"))
            sizes = (4 * n_tokens, 16 * n_rows)
            files = (beside(path, ".bin"), beside(path, ".rows"))
            real = tuple(file.stat().st_size for file in files)
            if real != sizes:
                raise ValueError(f"its files have {real} bytes, not {sizes}")
            if "parts" in header:
                parts = [(_whole(rows), _whole(size, 1)) for rows, size in header["parts"]]
            else:
                parts = [(n_rows, _count(header, "batch_size", 1))]
            if sum(rows for rows, _ in parts) != n_rows:
                raise ValueError("its parts have another number of rows")
            segment = cls(
                path=path,
                first=first,
                last=last,
                first_ticket=_count(header, "first_ticket"),
                parts=np.array(parts, np.int64).reshape(-1, 2),
                n_tokens=n_tokens,
                sources=tuple(SourceFile.read(source) for source in header["sources"]),
                examples_end=_count(header, "examples_end"),
            )
            segment._check_rows()
            if verify and _digest(*files) != header["sha256"]:
                raise ValueError("its tokens have another digest than its header says")
            return segment
        except FileNotFoundError as error:
            raise DataError(f"{path} lacks {error.filename}; {WAY_OUT}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {error}; {WAY_OUT}") from error

    def _check_rows(self) -> None:
        lengths, masked = self.rows_in_memory().T
        inside = (lengths >= 2) & (lengths <= self.n_tokens) & (masked >= 0)
        if not (inside & (masked < lengths - 1)).all() or lengths.sum() != self.n_tokens:
            raise ValueError(f"its rows do not cut {self.n_tokens} tokens into sequences")

    def rows_in_memory(self) -> NDArray[np.int64]:
        """Its rows, read without a mapping: a process can have only some thousand mappings."""
        return np.fromfile(beside(self.path, ".rows"), "<i8").reshape(-1, 2).astype(np.int64)

    @cached_property
    def tokens(self) -> NDArray[np.uint32]:
        """Its tokens."""
        return _map(beside(self.path, ".bin"), "<u4")

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Number of tokens of each row, and of its first labels that are not trained, (rows, 2)."""
        return _map(beside(self.path, ".rows"), "<i8").reshape(-1, 2)

    @property
    def end_ticket(self) -> int:
        """The ticket after its last."""
        return int(self._part_tickets[-1])

    @cached_property
    def _part_tickets(self) -> NDArray[np.int64]:
        """The first ticket of each part, then the ticket after the last."""
        tickets = -(-self.parts[:, 0] // self.parts[:, 1])
        return self.first_ticket + np.concatenate([[0], np.cumsum(tickets)])

    @cached_property
    def _part_ends(self) -> NDArray[np.int64]:
        """End of each part, as an index of rows."""
        return np.cumsum(self.parts[:, 0])

    @cached_property
    def _row_ends(self) -> NDArray[np.int64]:
        """End of each row, as an index of tokens."""
        return np.cumsum(self.rows[:, 0])

    def batch(self, ticket: int, byte_lengths: NDArray[np.int64]) -> Batch:
        """Return the rows of one of its tickets, padded to one length.

        Raises:
            DataError: a token is outside the vocabulary.
        """
        part = int(np.searchsorted(self._part_tickets, ticket, side="right")) - 1
        (n_rows, batch_size), end = self.parts[part], int(self._part_ends[part])
        begin = int(end - n_rows + (ticket - self._part_tickets[part]) * batch_size)
        of_ticket = slice(begin, min(begin + int(batch_size), end))
        chosen, ends = self.rows[of_ticket], self._row_ends[of_ticket]
        x, y = empty_rows(len(chosen), int(chosen[:, 0].max() - 1))
        for row, (end, (n, masked)) in enumerate(zip(ends, chosen, strict=True)):
            ids = self.tokens[end - n : end].astype(np.int64)
            if ids.max() >= len(byte_lengths):
                raise DataError(f"{self.path} has ids outside the vocabulary; {WAY_OUT}")
            x[row, : n - 1], y[row, masked : n - 1] = ids[:-1], ids[masked + 1 :]
        counted = y[y != IGNORED]
        return Batch(x, y, int(byte_lengths[counted].sum()), seed=ticket)


def header_path(folder: Path, first: int, last: int | None = None) -> Path:
    """The path of the header of a segment, or of a merged one of segments `first` to `last`."""
    return folder / (f"{first:08}.json" if last is None else f"{first:08}-{last:08}.json")


def headers(folder: Path) -> list[Path]:
    """Return the headers of all segments, in order, without segments merged into another.

    Raises:
        DataError: a header is missing.
        OSError: the folder cannot be read.
    """
    results, end = list[Path](), 0
    for first, last, path in sorted(_spans(folder), key=lambda span: (span[0], -span[1])):
        if last <= end:
            continue
        if first != end + 1:
            raise DataError(f"{header_path(folder, end + 1)} is missing; {WAY_OUT}")
        results.append(path)
        end = last
    return results


def read_all(folder: Path, *, verify: bool = False) -> list[StreamSegment]:
    """Return the segments of a stream, in order.

    Raises:
        DataError: a segment is damaged or missing.
        OSError: the folder cannot be read.
    """
    return [StreamSegment.read(path, verify=verify) for path in headers(folder)]


def _spans(folder: Path) -> Iterator[tuple[int, int, Path]]:
    for entry in os.scandir(folder):
        name = NAME.fullmatch(entry.name)
        if name is not None and name[3] == ".json":
            yield int(name[1]), int(name[2] or name[1]), folder / entry.name


def beside(header: Path, suffix: str) -> Path:
    """Another file of a segment; its header may have a `.part` name."""
    return header.with_name(header.name.replace(".json", suffix, 1))


def _count(header: Mapping[str, Any], name: str, least: int = 0) -> int:
    try:
        return _whole(header[name], least)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _whole(value: object, least: int = 0) -> int:
    if type(value) is not int or not least <= value < MOST_TICKETS:
        raise ValueError(f"is {shown(value)}, expected a whole number from {least} to 2^53")
    return value


def _map(path: Path, dtype: str) -> NDArray[Any]:
    """A file as a mapped array."""
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _digest(tokens: Path, rows: Path) -> str:
    with tokens.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(rows.read_bytes())
    return digest.hexdigest()
