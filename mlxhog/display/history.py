"""Read a run's metrics.jsonl as columns, while the file grows.

Damaged lines are skipped; missing fields have defaults.
"""

import json
import math
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import reading
from mlxhog.base.typed import fill
from mlxhog.progress import EVALUATED, Progress, WorkerReport

AXES = ("elapsed_s", "tokens", "step")
DRAWN = (
    "loss", "train_bits_per_byte", "val_bits_per_byte", "final_bits_per_byte", "tokens_per_s",
    "lost_update_rate", "memory_bytes", "lr",
)  # fmt: skip
OF_RUN = (*AXES, *DRAWN, "val_bytes")  # columns of the run
OF_WORKER = ("tokens_per_s", "staleness", "memory_bytes", "waiting")  # columns of each worker
MAX_TAIL = 1 << 26  # bytes at the end of a file in which `newest_line` looks


class GrowingFile:
    """A file of JSON lines, read while it grows; a missing file is empty.

    `on_replaced` is called before a replaced file is read from its beginning.
    """

    def __init__(self, path: Path, on_replaced: Callable[[], object] = lambda: None) -> None:
        self.path, self._on_replaced = path, on_replaced
        self._inode, self._read = -1, 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the new complete lines, {} for one that is not a JSON object.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            file = reading.open_regular(self.path)
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if self._inode not in (-1, status.st_ino) or status.st_size < self._read:
                self._read = 0
                self._on_replaced()
            self._inode = status.st_ino
            file.seek(self._read)
            while (line := file.readline(reading.MAX_LINE_BYTES)).endswith(b"\n"):
                self._read += len(line)
                yield _object(line)


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


@dataclass(frozen=True, kw_only=True)
class _Line(Progress):
    """A line of metrics.jsonl, damaged without a plausible step and time."""

    step: int = field()
    elapsed_s: float = field()
    supervisor_pid: int | None = None

    def __post_init__(self) -> None:
        if self.step < 0 or not 0 <= self.elapsed_s < 1e12:
            raise ValueError("step or elapsed_s is impossible")


class History:
    """The lines of a metrics.jsonl as columns; `update` reads them."""

    def __init__(self, path: Path) -> None:
        self._file = GrowingFile(path, self._begin)  # a resume replaces it
        self._begin()

    def _begin(self) -> None:
        self.backends: dict[int, str] = {}  # by the slot of the worker
        self._workers: dict[int, WorkerReport] = {}  # last reports of the newest command
        self._length = 0
        self.newest: _Line | None = None
        self._columns: dict[tuple[int, str], array[float]] = {}  # by slot, 0 for the run
        self._evaluation: dict[str, Any] = {}

    def __len__(self) -> int:
        return self._length

    def column(self, name: str, slot: int = 0) -> NDArray[np.float64]:
        """Return a copy of a column of `OF_RUN`, or of `OF_WORKER` of a slot; NaN is a gap."""
        values = np.full(self._length, math.nan)
        known = self._columns.get((slot, name), ())
        values[: len(known)] = known
        return values

    def last(self, name: str) -> float | None:
        """Return the newest number of a column of the run, or None."""
        return next(reversed(self._columns.get((0, name), ())), None)

    @property
    def progress(self) -> Progress:
        """The last line, with the newest evaluation."""
        return replace(self.newest or Progress(), **self._evaluation)

    def update(self) -> None:
        """Append the new lines of the file; OSError if it cannot be read."""
        for record in self._file.read():
            with suppress(ValueError):
                self._append(fill(_Line, record))

    def _put(self, slot: int, name: str, value: float | None) -> None:
        if value is not None:
            column = self._columns.setdefault((slot, name), array("d"))
            column.extend([math.nan] * (self._length - 1 - len(column)))
            column.append(value)

    def _append(self, line: _Line) -> None:
        values, last, since_s = dict[str, Any](vars(line)), self.newest, line.elapsed_s
        if last is not None:
            if line.supervisor_pid != last.supervisor_pid:
                self._workers.clear()  # those of a new command count from 0
            since_s -= last.elapsed_s
            if since_s <= 0:  # no worker trains during the last evaluation
                values |= dict.fromkeys(("tokens_per_s", "loss", "train_bits_per_byte"))
        if line.val_bits_per_byte is not None:
            evaluation, known = {name: values[name] for name in EVALUATED}, self._evaluation
            if line.val_step == known.get("val_step"):  # repeated by a resume, or a larger score
                repeated = (name for name in EVALUATED if values[name] == known.get(name))
                values |= dict.fromkeys(repeated)
            self._evaluation = evaluation
        self._length += 1
        for name in OF_RUN:
            self._put(0, name, values[name])
        by_slot = {one.slot: one for one in line.workers if one.slot > 0}  # each once
        for one in by_slot.values():
            self._append_worker(one, since_s)
        self.newest = line

    def _append_worker(self, worker: WorkerReport, since_s: float) -> None:
        slot, last = worker.slot, self._workers.get(worker.slot, WorkerReport())
        applied, applied_before = worker.steps - worker.dropped, last.steps - last.dropped
        self._put(slot, "memory_bytes", worker.memory_bytes)
        if applied > applied_before:
            stale = applied * worker.mean_staleness - applied_before * last.mean_staleness
            self._put(slot, "staleness", stale / (applied - applied_before))
        if since_s > 0:
            self._put(slot, "tokens_per_s", worker.tokens_per_s)
        if since_s > 0 and last.slot:
            share = (worker.wait_s - last.wait_s) / since_s
            self._put(slot, "waiting", min(max(share, 0.0), 1.0))
        self.backends[slot], self._workers[slot] = worker.backend, worker

    def drawn(self, points: int) -> dict[str, Any]:
        """Return the columns `AXES`, `DRAWN` and, by slot, `OF_WORKER`, thinned to `points`.

        They are lists of one length; None is a gap.
        """
        starts = buckets(len(self), points)

        def thinned(names: tuple[str, ...], slot: int = 0) -> dict[str, list[float | None]]:
            columns = {name: thin(self.column(name, slot), starts).tolist() for name in names}
            return {
                name: [None if math.isnan(v) else float(f"{v:.5g}") for v in column]
                for name, column in columns.items()
            }

        axes = {name: ends(self.column(name), starts).round(2).tolist() for name in AXES}
        workers = {slot: thinned(OF_WORKER, slot) for slot in sorted(self.backends)}
        return {"axes": axes, "of_run": thinned(DRAWN), "of_workers": workers}


def buckets(rows: int, points: int) -> NDArray[np.int64] | None:
    """Return the first row of each of `points` / 2 buckets; None if all rows can be points."""
    n = max(points // 2, 1)
    return None if rows <= max(points, 2) else np.arange(n, dtype=np.int64) * rows // n


def thin(values: NDArray[np.float64], starts: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Keep the smallest and largest number of every bucket, in the direction of its change.

    A bucket of gaps stays a gap.

    >>> thin(np.array([1.0, 9.0, 2.0, 5.0, 4.0, 0.0]), np.array([0, 3])).tolist()
    [1.0, 9.0, 5.0, 0.0]
    """
    if starts is None:
        return values
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    first, last = ends(values, starts).reshape(-1, 2).T
    falls = last < first
    return np.column_stack([np.where(falls, high, low), np.where(falls, low, high)]).ravel()


def ends(values: NDArray[np.float64], starts: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Return the first and last number of every bucket, the places of `thin`'s numbers."""
    if starts is None:
        return values
    lasts = np.append(starts[1:], len(values)) - 1
    return np.column_stack([values[starts], values[lasts]]).ravel()


def newest_line(path: Path) -> dict[str, Any] | None:
    """Return the last line of a metrics.jsonl, with the newest evaluation, or None."""
    try:
        with reading.open_regular(path) as file:
            file.seek(max(file.seek(0, 2) - MAX_TAIL, 0))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    newest: dict[str, Any] | None = None
    for line in reversed(lines):
        if newest is not None and b'"val_bits_per_byte": null' in line:
            continue  # most lines have no evaluation
        with suppress(ValueError):
            record = vars(fill(_Line, _object(line)))
            newest = newest or record
            if record["val_bits_per_byte"] is not None:
                return newest | {name: record[name] for name in EVALUATED}
    return newest
