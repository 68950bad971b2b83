"""A run's metrics.jsonl as columns, read while the file grows.

A file may grow at this moment, or be damaged. A line that is not a progress is skipped and counted;
a missing field has its default.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import reading
from mlxhog.base.typed import fill
from mlxhog.report.metrics import EVALUATED, Progress, WorkerReport
from mlxhog.report.streams import printable

OF_RUN = (
    "elapsed_s", "step", "tokens", "updates", "loss", "train_bits_per_byte", "val_bits_per_byte",
    "val_bytes", "final_bits_per_byte", "tokens_per_s", "lost_update_rate", "memory_bytes",
    "budget_fraction",
)  # fmt: skip
OF_WORKER = ("tokens_per_s", "staleness", "memory_bytes", "waiting")
NEVER_FALL = ("elapsed_s", "step", "tokens", "updates")
AXES = ("elapsed_s", "tokens", "updates")
DRAWN = (
    "loss", "train_bits_per_byte", "val_bits_per_byte", "final_bits_per_byte", "tokens_per_s",
    "lost_update_rate", "memory_bytes",
)  # fmt: skip
ENDED = ("?", "free", "finished", "left")
"""States of a slot after which a new process in it is not a restart."""
MOST_WORKERS = 256
MOST_TAIL = 1 << 26
"""Bytes at the end of a file in which `newest_line` looks."""
NOT_EVALUATED = b'"val_bits_per_byte": null'

Columns = dict[str, "array[float]"]


class GrowingFile:
    """Reads a file of JSON lines while it grows.

    Args:
        path: path of the file; a missing file is empty.
        on_replaced: called before a replaced file is read from its begin.
    """

    def __init__(self, path: Path, on_replaced: Callable[[], object] = lambda: None) -> None:
        self.path, self._on_replaced = path, on_replaced
        self._inode, self._read = -1, 0

    def read(self) -> Iterator[dict[str, Any] | None]:
        """Yield the new complete lines, None for one that is not a JSON object.

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
            while (line := file.readline(reading.MOST_LINE_BYTES)).endswith(b"\n"):
                self._read += len(line)
                yield _object(line)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True, kw_only=True)
class _Line(Progress):
    """A line of metrics.jsonl; without its step and time it is damaged."""

    step: int = field()
    elapsed_s: float = field()
    supervisor_pid: int | None = None


@dataclass
class WorkerHistory:
    """The history of one worker slot.

    Attributes:
        columns: a column for each name in `OF_WORKER`, with a number or NaN per line.
        backend: such as "torch:cpu".
        newest: its last report in the newest command.
        restarts: processes that replaced a dead one.
    """

    columns: Columns
    backend: str = "?"
    newest: WorkerReport = WorkerReport()
    restarts: int = 0


class History:
    """The lines of one metrics.jsonl as columns.

    Attributes:
        columns: a column for each name in `OF_RUN`, with a number or NaN per line.
        workers: histories of the workers, by slot.
        damaged: number of skipped lines.
        newest: the last line; None before the first one.
        starts: number of times that the file was read from its begin; a change means that the
            file was replaced.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self.starts = 0
        self._file = GrowingFile(path, self._begin)
        self._begin()

    def _begin(self) -> None:
        self.starts += 1
        self.columns: Columns = {name: array("d") for name in OF_RUN}
        self.workers: dict[int, WorkerHistory] = {}
        self.damaged = 0
        self.newest: _Line | None = None
        self._evaluation: dict[str, Any] = {}
        self._dropped_before = 0

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.columns["elapsed_s"])

    def update(self) -> None:
        """Append the new lines of the file, or read a replaced file, as a resume leaves, anew.

        Raises:
            OSError: the file cannot be read; a missing file has no lines.
        """
        for record in self._file.read():
            try:
                self._take(fill(_Line, record or {}))
            except ValueError:
                self.damaged += 1

    @property
    def progress(self) -> Progress:
        """The last line, with the newest evaluation."""
        return replace(self.newest or Progress(), **self._evaluation)

    def _take(self, line: _Line) -> None:
        """Append one line to the columns."""
        last, columns = self.newest, self.columns
        if last is not None and line.supervisor_pid != last.supervisor_pid:
            for known in self.workers.values():  # a new command, whose workers count from 0
                self._dropped_before += known.newest.dropped
                known.newest = WorkerReport()
        dropped = self._dropped_before + sum(worker.dropped for worker in line.workers)
        values: dict[str, Any] = {**vars(line), "updates": line.step - dropped}
        since_s = line.elapsed_s
        if last is not None:
            values |= {name: max(values[name], columns[name][-1]) for name in NEVER_FALL}
            since_s = values["elapsed_s"] - columns["elapsed_s"][-1]
            if since_s <= 0:  # no worker trains during the last evaluation
                values |= dict.fromkeys(("tokens_per_s", "loss", "train_bits_per_byte"))
        if line.val_bits_per_byte is not None:
            self._evaluation = {name: values[name] for name in EVALUATED}
        for name, column in columns.items():
            value = values[name]  # the first line of a resume repeats the last evaluation
            is_old = last is not None and name in EVALUATED and value == getattr(last, name)
            column.append(math.nan if value is None or is_old else value)
        for known in self.workers.values():
            for column in known.columns.values():
                column.append(math.nan)
        for worker in line.workers[:MOST_WORKERS]:
            self._take_worker(worker, since_s)
        self.newest = line

    def _take_worker(self, worker: WorkerReport, since_s: float) -> None:
        if worker.slot not in self.workers:
            gaps = {name: array("d", [math.nan]) * len(self) for name in OF_WORKER}
            self.workers[worker.slot] = WorkerHistory(gaps)
        known = self.workers[worker.slot]
        last, columns = known.newest, known.columns
        applied, applied_before = worker.steps - worker.dropped, last.steps - last.dropped
        columns["memory_bytes"][-1] = worker.memory_bytes
        if applied > applied_before:
            late = applied * worker.mean_staleness - applied_before * last.mean_staleness
            columns["staleness"][-1] = late / (applied - applied_before)
        if since_s > 0:
            columns["tokens_per_s"][-1] = worker.tokens_per_s
        if since_s > 0 and last.slot:
            share = (worker.wait_s - last.wait_s) / since_s
            columns["waiting"][-1] = min(max(share, 0.0), 1.0)
        known.backend = printable(worker.backend)[:40]
        known.restarts += last.pid != worker.pid and last.state not in ENDED
        known.newest = worker

    def column(self, name: str) -> NDArray[np.float64]:
        """A copy of one column of the run."""
        return np.array(self.columns[name])

    def drawn(self, points: int) -> dict[str, Any]:
        """Return the columns thinned to at most `points` points; see `thin`.

        Returns:
            Lists of one length: "axes", non-decreasing values of each name in `AXES`; "of_run",
            values of each name in `DRAWN`; "of_workers", those of `OF_WORKER` by slot. None is a
            gap.
        """
        starts = buckets(len(self), points)
        axes = {name: ends(self.column(name), starts) for name in AXES}
        return {
            "axes": {name: [round(x, 2) for x in axes[name].tolist()] for name in AXES},
            "of_run": {name: _rounded(thin(self.column(name), starts)) for name in DRAWN},
            "of_workers": {
                slot: {
                    name: _rounded(thin(np.array(column), starts))
                    for name, column in known.columns.items()
                }
                for slot, known in sorted(self.workers.items())
            },
        }


def buckets(rows: int, points: int) -> NDArray[np.int64] | None:
    """The first row of each of `points` / 2 buckets, or None if every row can be a point."""
    n = max(points // 2, 1)
    return None if rows <= max(points, 2) else np.arange(n, dtype=np.int64) * rows // n


def thin(values: NDArray[np.float64], starts: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Keep the smallest and the largest number of every bucket, so that no peak is lost.

    The two keep the direction in which the bucket rises or falls. A bucket of gaps stays a gap.

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
    """The first and the last number of every bucket: the places of `thin`'s two numbers."""
    if starts is None:
        return values
    lasts = np.append(starts[1:], len(values)) - 1
    return np.column_stack([values[starts], values[lasts]]).ravel()


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers with five digits; gaps are None."""
    return [None if math.isnan(v) else float(f"{v:.5g}") for v in values.tolist()]


def newest_line(path: Path) -> dict[str, Any] | None:
    """Return the last complete line of a metrics.jsonl, with the newest evaluation, or None.

    Only the last `MOST_TAIL` bytes are read.
    """
    try:
        with reading.open_regular(path) as file:
            file.seek(max(file.seek(0, 2) - MOST_TAIL, 0))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    newest: dict[str, Any] | None = None
    for line in reversed(lines):
        if newest is not None and NOT_EVALUATED in line:
            continue
        record = _object(line)
        if record is not None and "step" in record:
            newest = newest or record
            if record.get("val_bits_per_byte") is not None:
                return newest | {name: record.get(name) for name in EVALUATED}
    return newest
