"""Writing segments: rows go to the disk as they arrive, and small segments are merged.

A segment is written under `.part` names, flushed to the disk, read back, and then renamed, its
header last. A merge does the same with all rows of several segments, and then removes these. After
a kill at any moment each segment is whole or absent; `sweep` removes incomplete files.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from mlxhog.data.segments import (
    FORMAT,
    NAME,
    StreamSegment,
    TrainingRow,
    beside,
    header_path,
    headers,
)
from mlxhog.files import plain_json
from mlxhog.files.durable import flush, open_new, sync, write_synced

MERGED_TOKENS = 16 << 20
"""Most tokens of a merged segment."""
FEW = 32
"""Fewer neighbouring segments are not merged."""
_BLOCK = 1 << 20
_SUFFIXES = (".bin", ".rows", ".json")
_PART = re.compile(NAME.pattern + r"(\.\d+)+\.part")
_numbers = itertools.count()  # numbers of the drafts of this process


def sweep(folder: Path) -> None:
    """Remove segments that were merged into another, and segments of killed processes.

    The caller holds the run's lock, so no other process writes segments.

    Raises:
        DataError: a segment is missing.
        OSError: the folder cannot be read.
    """
    named = {path.stem for path in headers(folder)}
    for entry in list(os.scandir(folder)):
        name = NAME.fullmatch(entry.name)
        if _PART.fullmatch(entry.name) or (name and Path(entry.name).stem not in named):
            with suppress(OSError):
                os.unlink(entry)


class Draft:
    """A segment that is being written: rows go to the disk as they arrive.

    Its files have `.part` names, which `publish` replaces. If a `with` block ends without
    `publish`, the files are removed.

    Attributes:
        n_tokens: tokens of all rows so far.
    """

    def __init__(self, path: Path) -> None:
        """Prepare a draft; its files are created with the first row.

        Args:
            path: path of the header of the published segment.
        """
        self.path, self.n_tokens = path, 0
        # The number: a thread that the run has abandoned may still write an older draft.
        self._header = path.with_name(f"{path.name}.{os.getpid()}.{next(_numbers)}.part")
        self._file: IO[bytes] | None = None
        self._pending = bytearray()
        self._rows = array("q")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files that were not published."""
        if self._file is not None:
            self._file.close()
        for suffix in _SUFFIXES:
            with suppress(OSError):
                os.unlink(beside(self._header, suffix))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows) // 2

    def add(self, row: TrainingRow) -> None:
        """Append a row.

        Raises:
            OSError: it cannot be written.
        """
        self._rows.extend((len(row.ids), row.masked))
        self._append(row.ids.astype("<u4").tobytes())

    def add_segment(self, segment: StreamSegment) -> None:
        """Append the rows of another segment.

        Raises:
            OSError: it cannot be read, or written.
        """
        self._rows.frombytes(segment.rows_in_memory().tobytes())
        with beside(segment.path, ".bin").open("rb") as file:
            while block := file.read(_BLOCK):
                self._append(block)

    def mark(self) -> tuple[int, int, Any]:
        """Return the current position, to which `undo` returns.

        Raises:
            OSError: the rows before it cannot be written.
        """
        self._write()
        return self.n_tokens, len(self._rows), self._digest.copy()

    def undo(self, mark: tuple[int, int, Any]) -> None:
        """Remove the rows behind a mark.

        Raises:
            OSError: the system refuses.
        """
        self.n_tokens, n_words, self._digest = mark
        del self._rows[n_words:]
        self._pending.clear()
        if self._file is not None:
            self._file.truncate(4 * self.n_tokens)
            self._file.seek(4 * self.n_tokens)

    def seal(self, header: Mapping[str, Any]) -> None:
        """Write the rest of the files, flush them to the disk and read them back.

        Args:
            header: fields of the header beside the number of tokens and rows, and their digest.

        Raises:
            DataError: the files that are read back differ from the written ones.
            OSError: the system refuses.
        """
        table = np.frombuffer(self._rows, np.int64).astype("<i8").tobytes()
        self._write(make=True)
        assert self._file is not None
        flush(self._file.fileno())
        self._digest.update(table)
        counts = {"tokens": self.n_tokens, "rows": len(self), "sha256": self._digest.hexdigest()}
        write_synced(beside(self._header, ".rows"), table)
        write_synced(self._header, plain_json.dumps({"format": FORMAT, **header, **counts}))
        StreamSegment.read(self._header, verify=True)

    def publish(self) -> StreamSegment:
        """Rename the files to their final names, the header last.

        Raises:
            OSError: the system refuses; nothing is published.
        """
        self.path.unlink(missing_ok=True)  # left by a failed try that could not remove its header
        for suffix in _SUFFIXES:
            os.replace(beside(self._header, suffix), self.path.with_suffix(suffix))
        try:
            sync(self.path.parent)
            return StreamSegment.read(self.path)
        except BaseException:  # no worker may open this one, since the next try has the same name
            with suppress(OSError):
                self.path.unlink()
            raise

    def _append(self, content: bytes) -> None:
        self._pending += content
        self.n_tokens += len(content) // 4
        if len(self._pending) >= _BLOCK:
            self._write()

    def _write(self, *, make: bool = False) -> None:
        if self._file is None and (make or self._pending):
            self._file = open_new(beside(self._header, ".bin"), buffering=0)
        if self._pending and self._file is not None:
            self._digest.update(self._pending)
            with memoryview(self._pending) as rest:
                begin = 0
                while begin < len(rest):
                    begin += self._file.write(rest[begin:])
            self._pending.clear()


def merge(folder: Path, segments: Sequence[StreamSegment]) -> list[StreamSegment]:
    """Merge many small neighbouring segments; return all segments afterwards.

    The caller holds the run's lock, and no worker reads. A merged segment is published, by rename,
    before its parts are removed; on a full disk the parts stay.

    Args:
        folder: folder of the stream.
        segments: all segments, verified.
    """
    results: list[StreamSegment] = []
    for group in _groups(segments):
        if len(group) >= FEW:
            with suppress(OSError):  # such as a full disk; then the next start is slow again
                group = [_merged(folder, group)]
        results += group
    sweep(folder)
    return results


def _merged(folder: Path, group: Sequence[StreamSegment]) -> StreamSegment:
    with Draft(header_path(folder, group[0].first, group[-1].last)) as draft:
        for segment in group:
            draft.add_segment(segment)
        draft.seal(
            {
                "first_ticket": group[0].first_ticket,
                "parts": [part for segment in group for part in segment.parts.tolist()],
                "sources": [vars(source) for segment in group for source in segment.sources],
                "examples_end": group[-1].examples_end,
            }
        )
        return draft.publish()


def _groups(segments: Sequence[StreamSegment]) -> Iterator[list[StreamSegment]]:
    """Groups of neighbouring segments whose sum is small enough to merge."""
    group, n_tokens = list[StreamSegment](), 0
    for segment in segments:
        if group and n_tokens + segment.n_tokens > MERGED_TOKENS:
            yield group
            group, n_tokens = [], 0
        group.append(segment)
        n_tokens += segment.n_tokens
    if group:
        yield group
