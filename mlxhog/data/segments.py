"""Segments of text that arrives while a run trains: files that only grow, in the run's directory.

    stream/tokens.bin        the tokens of all rows, little endian uint32
    stream/rows.bin          (rows, 2) int64: end of a row in the tokens, and number of its first
                             labels that are not trained
    stream/segments.jsonl    a line for each segment; the append of its line publishes a segment
    stream/stream.json, stream/examples.jsonl    see `mlxhog.data.stream`

Tickets are numbered through all segments. Each has the rows of one batch; the last ticket of a
segment may have fewer, since it ends with the segment. A published segment never changes, so a
ticket means the same rows in every process and after every kill. Bytes of tokens and rows behind
the last line are of a killed process; the next holder of the run's lock removes them. Segments name
their files, so that each file is read once.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import os
import tempfile
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.durable import append_all, append_lines, disk_errors, flush, read_lines, sync
from mlxhog.data.batch import IGNORED, Batch, empty_rows
from mlxhog.errors import DataError, shown

FOLDER = "stream"
SEGMENTS, TOKENS, ROWS, EXAMPLES = "segments.jsonl", "tokens.bin", "rows.bin", "examples.jsonl"
WAY_OUT = "the stream of this run is damaged; follow the files again in a new run"
TICKETS = 1024
"""Tickets of an "epoch": a stream has no end, and a ticket is numbered epoch * TICKETS + ticket."""
MOST_TICKETS = 1 << 53
_TOKEN, _ROW = 4, 16  # bytes
_BLOCK = 1 << 20


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


@dataclass(frozen=True)
class Segment:
    """A published segment: a line of `segments.jsonl`.

    Attributes:
        rows: rows of this segment and those before.
        tokens: tokens of them.
        end_ticket: the ticket after its last.
        batch_size: rows of a ticket.
        examples_end: bytes of `examples.jsonl` that are in this segment and those before.
        sha256: digest of its tokens and rows.
        sources: files whose text it has.
    """

    rows: int = 0
    tokens: int = 0
    end_ticket: int = 0
    batch_size: int = 1
    examples_end: int = 0
    sha256: str = ""
    sources: tuple[SourceFile, ...] = ()

    def following(self, line: str | bytes) -> Segment:
        """Return the segment of the next line.

        Raises:
            ValueError, TypeError: the line does not describe a segment behind this one.
        """
        fields = plain_json.loads(line)
        sources = tuple(SourceFile(**source) for source in fields.pop("sources"))
        after = Segment(**fields, sources=sources)
        counts = ("rows", "tokens", "end_ticket", "examples_end", "batch_size")
        for name in counts:
            least = 1 if name == "batch_size" else getattr(self, name)
            if type(value := getattr(after, name)) is not int or not least <= value < MOST_TICKETS:
                raise ValueError(f"{name} is {shown(value)}, expected at least {least}")
        if after.end_ticket != self.end_ticket - (self.rows - after.rows) // after.batch_size:
            raise ValueError(f"{after.rows - self.rows} rows do not end at {after.end_ticket}")
        for one in sources:
            whole = type(one.n_bytes) is int and type(one.changed_ns) is int
            if not (whole and isinstance(one.name, str) and isinstance(one.refused, str | None)):
                raise ValueError(f"a source is {shown(vars(one))}")
        return after


def read_segments(folder: Path, *, verify: bool = False) -> list[Segment]:
    """Return the segments of a stream, in order; none if it has no file of them.

    Args:
        folder: folder of the stream.
        verify: whether to compare their digests, which reads all tokens.

    Raises:
        DataError: a segment is damaged.
    """
    segments = _Lines(folder).read()
    if not verify or not segments:
        return segments
    before = Segment()
    try:
        with (folder / TOKENS).open("rb") as tokens, (folder / ROWS).open("rb") as rows:
            for number, segment in enumerate(segments, 1):
                digest = hashlib.sha256()
                for file, n in (
                    (tokens, _TOKEN * (segment.tokens - before.tokens)),
                    (rows, _ROW * (segment.rows - before.rows)),
                ):
                    while n and (block := file.read(min(n, _BLOCK))):
                        digest.update(block)
                        n -= len(block)
                if digest.hexdigest() != segment.sha256:
                    raise DataError(
                        f"segment {number} of {folder} has other tokens than its digest; {WAY_OUT}"
                    )
                before = segment
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}; {WAY_OUT}") from error
    return segments


class _Lines:
    """Reads the lines of `segments.jsonl` that are new since the last call."""

    def __init__(self, folder: Path) -> None:
        self._path, self._begin, self._number, self._last = folder / SEGMENTS, 0, 0, Segment()

    def read(self) -> list[Segment]:
        """Return the new segments.

        Raises:
            DataError: a line is damaged, or the file cannot be read.
        """
        segments = []
        try:
            while lines := read_lines(self._path, self._begin, _BLOCK):
                self._begin += len(lines)
                for line in lines.splitlines():
                    self._number += 1
                    self._last = self._last.following(line)
                    segments.append(self._last)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            where = f"{self._path}:{self._number}"
            raise DataError(f"{where} cannot be read: {error}; {WAY_OUT}") from error
        return segments


class Draft:
    """Rows for the next segment, in a file without a name, so that a kill leaves nothing.

    Attributes:
        n_tokens: tokens of all rows so far.
    """

    def __init__(self, folder: Path) -> None:
        self.n_tokens = 0
        self.rows = array("q")
        """Number of tokens, and of the first labels that are not trained, of each row."""
        self.file = tempfile.TemporaryFile(dir=folder)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the disk space back."""
        self.file.close()

    def add(self, row: TrainingRow) -> None:
        """Append a row.

        Raises:
            OSError: it cannot be written.
        """
        self.file.write(row.ids.astype("<u4").tobytes())
        self.rows.extend((len(row.ids), row.masked))
        self.n_tokens += len(row.ids)

    def mark(self) -> tuple[int, int]:
        """Return the current position, to which `undo` returns."""
        return self.n_tokens, len(self.rows)

    def undo(self, mark: tuple[int, int]) -> None:
        """Remove the rows behind a mark.

        Raises:
            OSError: the system refuses.
        """
        self.n_tokens, n_words = mark
        del self.rows[n_words:]
        self.file.seek(_TOKEN * self.n_tokens)
        self.file.truncate()


class Closed(Exception):
    """The stream of a run takes no more segments: the run has ended."""


class SegmentWriter:
    """Publishes segments; only the holder of the run's lock may have one.

    Attributes:
        last: the last segment; an empty one before the first.
        sources: files that are in segments, by name.
    """

    def __init__(self, folder: Path, *, batch_size: int) -> None:
        """Open the stream in a folder; segments that a kill has cut short are removed.

        Raises:
            DataError: a segment is damaged.
            EnvironmentLacks: the disk is full.
        """
        self.folder, self._batch_size = folder, batch_size
        self._closed, self._publishing = False, threading.Lock()
        with disk_errors(f"making {folder}"):
            folder.mkdir(exist_ok=True)
        segments = read_segments(folder, verify=True)
        self.last = segments[-1] if segments else Segment()
        self.sources = {source.name: source for one in segments for source in one.sources}
        with disk_errors(f"writing {folder}"):
            self._cut()
        examples = folder / EXAMPLES
        size = examples.stat().st_size if examples.exists() else 0
        if size < self.last.examples_end:
            raise DataError(
                f"{examples} has {size} bytes, but {self.last.examples_end} of them are in "
                f"segments; {WAY_OUT}"
            )

    def draft(self) -> Draft:
        """Begin the next segment; its rows become visible with `publish`.

        Raises:
            OSError: the system refuses.
        """
        return Draft(self.folder)

    def publish(self, draft: Draft, sources: Sequence[SourceFile], examples_end: int) -> None:
        """Append a segment; workers may train on it when this returns.

        Raises:
            Closed: `close` has been called; nothing is published.
            DataError: the segment could not be read back; nothing is published.
            EnvironmentLacks: the disk is full; nothing is published.
        """
        with self._publishing, disk_errors(f"writing {self.folder}"):
            if self._closed:
                raise Closed
            try:
                self.last = self._append(draft, sources, examples_end)
            except BaseException:
                self._cut()
                raise
            self.sources.update((source.name, source) for source in sources)

    def close(self) -> None:
        """Let no more segments be published, also by other threads."""
        with self._publishing:
            self._closed = True

    def _append(self, draft: Draft, sources: Sequence[SourceFile], examples_end: int) -> Segment:
        before = self.last
        counts = np.frombuffer(draft.rows, np.int64).reshape(-1, 2)
        ends = before.tokens + np.cumsum(counts[:, 0])
        rows = np.stack([ends, counts[:, 1]], axis=1).astype("<i8").tobytes()
        digest = hashlib.sha256()
        draft.file.seek(0)
        with (
            (self.folder / TOKENS).open("ab", buffering=0) as tokens_file,
            (self.folder / ROWS).open("ab", buffering=0) as rows_file,
        ):
            while block := draft.file.read(_BLOCK):
                digest.update(block)
                append_all(tokens_file.fileno(), block)
            digest.update(rows)
            append_all(rows_file.fileno(), rows)
            for file in (tokens_file, rows_file):
                flush(file.fileno())
        segment = Segment(
            rows=before.rows + len(counts),
            tokens=before.tokens + draft.n_tokens,
            end_ticket=before.end_ticket - (-len(counts) // self._batch_size),
            batch_size=self._batch_size,
            examples_end=examples_end,
            sha256=digest.hexdigest(),
            sources=tuple(sources),
        )
        line = plain_json.dumps(dataclasses.asdict(segment))
        try:
            before.following(line)
        except ValueError as error:
            raise DataError(f"{self.folder}: a segment cannot be read back: {error}") from error
        append_lines(self.folder / SEGMENTS, line + b"\n", synced=True)
        return segment

    def _cut(self) -> None:
        """Remove what stands behind the last segment."""
        for name, n_bytes in ((TOKENS, _TOKEN * self.last.tokens), (ROWS, _ROW * self.last.rows)):
            path = self.folder / name
            if path.exists() and path.stat().st_size > n_bytes:
                os.truncate(path, n_bytes)
        sync(self.folder)


class StreamBatches:
    """The batches of a stream, by ticket; the same in every process."""

    n_tickets = TICKETS

    def __init__(self, folder: Path, byte_lengths: NDArray[np.int64], example: Batch) -> None:
        """Read the segments of a folder when their tickets are requested.

        Args:
            folder: folder of the stream.
            byte_lengths: bytes of text of each id.
            example: a batch of other text, for `example` before the first segment.
        """
        self._folder, self._byte_lengths, self._example = folder, byte_lengths, example
        self._lines = _Lines(folder)
        self._segments = [Segment()]
        self._tokens = np.empty(0, "<u4")
        self._rows = np.empty((0, 2), "<i8")

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket, its rows padded to one length.

        Raises:
            DataError: its segment is not published, or damaged.
        """
        g = epoch * TICKETS + ticket
        if g >= self._segments[-1].end_ticket:
            self._map_new()
        k = bisect.bisect_right(self._segments, g, key=lambda segment: segment.end_ticket)
        if k == len(self._segments):
            raise DataError(f"ticket {g} of {self._folder} is not published")
        before, segment = self._segments[k - 1], self._segments[k]
        begin = before.rows + (g - before.end_ticket) * segment.batch_size
        end = min(begin + segment.batch_size, segment.rows)
        ends, masked = self._rows[begin:end].T
        starts = np.concatenate([self._rows[begin - 1 : begin, 0] if begin else [0], ends[:-1]])
        lengths = ends - starts
        inside = (0 <= masked) & (masked < lengths - 1) & (ends <= segment.tokens)
        if not inside.all():
            raise DataError(f"rows {begin} to {end} of {self._folder} are no sequences; {WAY_OUT}")
        x, y = empty_rows(len(lengths), int(lengths.max() - 1))
        for row, (start, n, skipped) in enumerate(zip(starts, lengths, masked, strict=True)):
            ids = self._tokens[start : start + n].astype(np.int64)
            if ids.max() >= len(self._byte_lengths):
                raise DataError(f"{self._folder} has ids outside the vocabulary; {WAY_OUT}")
            x[row, : n - 1], y[row, skipped : n - 1] = ids[:-1], ids[skipped + 1 :]
        return Batch(x, y, int(self._byte_lengths[y[y != IGNORED]].sum()), seed=g)

    def _map_new(self) -> None:
        """Read what has been published since the last time."""
        self._segments += self._lines.read()
        last = self._segments[-1]
        try:
            if last.rows:
                path = self._folder / TOKENS
                self._tokens = np.memmap(path, "<u4", mode="r", shape=(last.tokens,))
                self._rows = np.memmap(self._folder / ROWS, "<i8", mode="r", shape=(last.rows, 2))
        except (OSError, ValueError) as error:  # missing, or shorter than the segments say
            raise DataError(f"{self._folder} cannot be read: {error}; {WAY_OUT}") from error

    def example(self) -> Batch:
        """A batch of the usual shape, to try a model with."""
        return self._example


def stored_rows(folder: Path) -> list[TrainingRow]:
    """Return all rows of a stream, in order.

    Raises:
        DataError: a segment is damaged.
    """
    if not read_segments(folder, verify=True):
        return []
    tokens = np.fromfile(folder / TOKENS, "<u4").astype(np.int32)
    ends, masked = np.fromfile(folder / ROWS, "<i8").reshape(-1, 2).T
    parts = np.split(tokens, ends)[: len(ends)]
    return [TrainingRow(ids, int(n)) for ids, n in zip(parts, masked, strict=True)]
