"""A run's metrics.jsonl as columns, read while the file grows.

A file may grow at this moment, or be damaged. A line that is not a progress is skipped and counted;
a missing field has its default.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
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
ENDED = ("?", "free", "finished", "left")
"""States of a slot after which a new process in it is not a restart."""
MOST_WORKERS = 256
MOST_LINE = 1 << 22
"""Bytes of a line; a longer one counts as damaged."""
BLOCK = 1 << 22
MOST_TAIL = 1 << 26
"""Bytes at the end of a file in which `newest_line` looks."""
_EVALUATION = re.compile(rb'"val_bits_per_byte": ?[0-9]')
ROUND = 5
"""Digits of a drawn number."""


@dataclass(frozen=True, kw_only=True)
class _Line(Progress):
    """A line of metrics.jsonl."""

    supervisor_pid: int | None = None


@dataclass
class WorkerHistory:
    """The history of one worker slot.

    Attributes:
        backend: such as "torch:cpu".
        columns: a column for each name in `OF_WORKER`, with a number or NaN per line.
        newest: its last report in the newest command.
        restarts: processes that replaced a dead one.
    """

    backend: str
    columns: dict[str, array[float]]
    newest: WorkerReport = WorkerReport()
    restarts: int = 0


class History:
    """The lines of one metrics.jsonl as columns.

    Attributes:
        path: of the file.
        columns: a column for each name in `OF_RUN`, with a number or NaN per line.
        workers: histories of the workers, by slot.
        damaged: number of skipped lines.
        newest: the last line; None before the first one.
        evaluation: the fields `EVALUATED` of the newest evaluation; {} before the first one.
        starts: number of times that the file was read from its begin; a change means that the
            file was replaced.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self.path = path
        self.starts = 0
        self._begin()

    def _begin(self) -> None:
        self.columns: dict[str, array[float]] = {name: array("d") for name in OF_RUN}
        self.workers: dict[int, WorkerHistory] = {}
        self.damaged = 0
        self.newest: _Line | None = None
        self.evaluation: dict[str, Any] = {}
        self.starts += 1
        self._read, self._inode = 0, -1
        self._dropped_before = 0

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.columns["elapsed_s"])

    def update(self) -> int:
        """Append the new lines of the file; returns their number.

        A replaced file is read from its begin; a resume that drops lines replaces it.

        Raises:
            OSError: the file cannot be read; a missing file has no lines.
        """
        try:
            file = reading.open_regular(self.path)
        except FileNotFoundError:
            return 0
        with file:
            status = self.path.stat()
            if self._inode not in (-1, status.st_ino) or status.st_size < self._read:
                self._begin()
            self._inode = status.st_ino
            before = len(self)
            file.seek(self._read)
            for line in self._lines(file):
                self._take(line)
        return len(self) - before

    def _lines(self, file: Any) -> Iterator[bytes]:
        """Complete lines from here on; a last line without an end is read later."""
        rest = b""
        while block := file.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            self._read = file.tell() - len(rest)
            yield from lines
            if len(rest) > MOST_LINE:
                self.damaged += 1
                rest = b""
                self._read = file.tell()

    @property
    def progress(self) -> Progress:
        """The last line, with the newest evaluation."""
        return replace(self.newest or Progress(), **self.evaluation)

    def _take(self, text: bytes) -> None:
        """Append one line to the columns, or count it as damaged."""
        try:
            record = json.loads(text)
            if type(record["step"]) is not int or not math.isfinite(record["elapsed_s"]):
                raise ValueError("a line without its time")
            line = fill(_Line, record)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            self.damaged += 1
            return
        before, last = len(self), self.newest
        if last is not None and line.supervisor_pid != last.supervisor_pid:
            self._begin_command()
        dropped = sum(worker.dropped for worker in line.workers)
        values = {**vars(line), "updates": line.step - self._dropped_before - dropped}
        since_s = line.elapsed_s
        if before:  # axes never decrease
            for name in ("elapsed_s", "step", "tokens", "updates"):
                values[name] = max(values[name], self.columns[name][-1])
            since_s = values["elapsed_s"] - self.columns["elapsed_s"][-1]
        if before and since_s <= 0:  # no worker trains during the last evaluation
            values |= dict.fromkeys(("tokens_per_s", "loss", "train_bits_per_byte"))
        if line.val_bits_per_byte is not None:
            self.evaluation = {name: values[name] for name in EVALUATED}
        for name, column in self.columns.items():
            value = values[name]  # the first line of a resume repeats the last evaluation
            is_old = last is not None and name in EVALUATED and value == getattr(last, name)
            column.append(math.nan if value is None or is_old else value)
        for worker in line.workers:
            self._take_worker(worker, before, since_s)
        for known in self.workers.values():
            if len(known.columns["staleness"]) == before:  # this line does not have it
                for column in known.columns.values():
                    column.append(math.nan)
        self.newest = line

    def _begin_command(self) -> None:
        """Add up the totals of the previous command, since workers count from 0 in a new one."""
        for known in self.workers.values():
            self._dropped_before += known.newest.dropped
            known.newest = WorkerReport()

    def _take_worker(self, worker: WorkerReport, before: int, since_s: float) -> None:
        known = self.workers.get(worker.slot)
        if known is None:
            if worker.slot < 1 or len(self.workers) >= MOST_WORKERS:
                return
            gaps = {name: array("d", [math.nan]) * before for name in OF_WORKER}
            known = self.workers[worker.slot] = WorkerHistory("?", gaps)
        elif len(known.columns["staleness"]) > before:  # a line has this slot twice
            return
        last, columns, trains = known.newest, known.columns, since_s > 0
        applied, applied_before = worker.steps - worker.dropped, last.steps - last.dropped
        late = applied * worker.mean_staleness - applied_before * last.mean_staleness
        fresh, waited = applied - applied_before, worker.wait_s - last.wait_s
        has_waited = trains and last.slot
        columns["tokens_per_s"].append(worker.tokens_per_s if trains else math.nan)
        columns["memory_bytes"].append(worker.memory_bytes)
        columns["staleness"].append(late / fresh if fresh > 0 else math.nan)
        columns["waiting"].append(min(max(waited / since_s, 0.0), 1.0) if has_waited else math.nan)
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

        def thinned(columns: Mapping[str, array[float]], names: Iterable[str]) -> dict[str, Any]:
            return {name: rounded(thin(np.array(columns[name]), starts)) for name in names}

        seconds, *others = (ends(self.column(name), starts) for name in AXES)
        numbers = [np.nan_to_num(values).astype(int) for values in others]
        return {
            "axes": {
                name: values.tolist()
                for name, values in zip(AXES, [seconds.round(2), *numbers], strict=True)
            },
            "of_run": thinned(self.columns, DRAWN),
            "of_workers": {
                slot: thinned(known.columns, OF_WORKER)
                for slot, known in sorted(self.workers.items())
            },
        }


AXES = ("elapsed_s", "tokens", "updates")


DRAWN = (
    "loss", "train_bits_per_byte", "val_bits_per_byte", "final_bits_per_byte", "tokens_per_s",
    "lost_update_rate", "memory_bytes",
)  # fmt: skip


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
    first, last = values[starts], values[_lasts(starts, len(values))]
    falls = last < first
    return np.column_stack([np.where(falls, high, low), np.where(falls, low, high)]).ravel()


def ends(values: NDArray[np.float64], starts: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """The first and the last number of every bucket: the places of `thin`'s two numbers."""
    if starts is None:
        return values
    return np.column_stack([values[starts], values[_lasts(starts, len(values))]]).ravel()


def _lasts(starts: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    return np.append(starts[1:], rows) - 1


def rounded(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers with `ROUND` digits; gaps are None."""
    return [None if math.isnan(v) else float(f"{v:.{ROUND}g}") for v in values.tolist()]


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
    lines.reverse()
    newest = next(_records(lines), None)
    if newest is None:
        return None
    evaluation = next(_records(filter(_EVALUATION.search, lines)), {})
    return newest | {name: evaluation.get(name) for name in EVALUATED}


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines of metrics that are not damaged."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                yield record
