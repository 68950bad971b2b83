"""Words in the arena by which the host hands out work, and workers say what became of it.

Work comes in rounds; an epoch is one round, and another for what a worker left that died. A worker
that was dealt a share arrives; when all have, the host says go, so that they begin together; each
notes when it began and ended, by the clock that all processes share.

Segment `classic.rounds`, uint8, a line of 128 bytes for the host and one for each worker; all words
are 64 bits wide.

    line  byte  type  field      written by  meaning
    0        0  u64   go         host        newest round that may begin
    0        8  u64   leave      host        1: workers end
    1 + k    0  u64   dealt      host        round that worker k has a share of; written last
    1 + k    8  u64   start      host        its share is order[start : start + count]
    1 + k   16  u64   count      host
    1 + k   24  f64   gamma      host        step size
    1 + k   32  u64   load       host        1: copy the parameters first (schemes with copies)
    1 + k   40  u64   probe      host        1: raise the probe with every example
    1 + k   64  u64   arrived    worker      round that it waits to begin
    1 + k   72  u64   finished   worker      round that it has ended; written last
    1 + k   80  u64   begin_ns   worker      `monotonic_ns()`
    1 + k   88  u64   end_ns     worker
    1 + k   96  u64   done       worker      examples done in the round

`go`, `leave`, `dealt`, `arrived` and `finished` are stored with release and loaded with acquire
order; the rest is read only after one of them has been seen.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena.process import monotonic_ns

SEGMENT = "classic.rounds"
LINE = 128
_GO, _LEAVE = 0, 8
_DEALT, _ARRIVED, _FINISHED = 0, 64, 72
_LINE_DTYPE = np.dtype(
    {
        "names": ["start", "count", "gamma", "load", "probe", "begin_ns", "end_ns", "done"],
        "formats": ["<u8", "<u8", "<f8", "<u8", "<u8", "<u8", "<u8", "<u8"],
        "offsets": [8, 16, 24, 32, 40, 80, 88, 96],
        "itemsize": LINE,
    }
)
_POLL_S = 0.0002
_SPINS = 2000  # about a millisecond of yielding before a worker that has arrived sleeps


def size(workers: int) -> int:
    """Bytes of the segment."""
    return LINE * (1 + workers)


@dataclass(frozen=True)
class Share:
    """What one worker does in a round.

    Attributes:
        gamma: step size.
        load: copy the shared parameters to the worker's own first.
        probe: raise the lost-update probe (`probe.py`).
        start: its examples are `order[start : start + count]`; with a queue, those that it claims
            there.
        count: how many.
    """

    gamma: float
    load: bool = False
    probe: bool = False
    start: int = 0
    count: int = 0


class Rounds:
    """Both sides of the segment. The host's methods are for the host alone."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap the segment, of `size(workers)` bytes."""
        self._data = data
        self._lines: NDArray[Any] = data[LINE:].view(_LINE_DTYPE)
        self.number = _native.load_u64(data, _GO)  # of the last run in this arena

    def _at(self, worker: int, word: int) -> int:
        return LINE * (1 + worker) + word

    # -- the host's ------------------------------------------------------------------------------

    def deal(self, shares: dict[int, Share]) -> int:
        """Begin a new round, in which the given workers have a share; returns its number."""
        self.number += 1
        for worker, share in shares.items():
            line = self._lines[worker]
            line["start"], line["count"] = share.start, share.count
            line["gamma"], line["done"] = share.gamma, 0
            line["load"], line["probe"] = share.load, share.probe
            _native.store_u64(self._data, self._at(worker, _DEALT), self.number)
        return self.number

    def arrived(self, worker: int) -> bool:
        """Whether a worker waits to begin the newest round, or is further."""
        return _native.load_u64(self._data, self._at(worker, _ARRIVED)) == self.number

    def finished(self, worker: int) -> bool:
        """Whether a worker has ended the newest round."""
        return _native.load_u64(self._data, self._at(worker, _FINISHED)) == self.number

    def go(self) -> None:
        """Let those who have arrived begin."""
        _native.store_u64(self._data, _GO, self.number)

    def leave(self) -> None:
        """Ask every worker to end."""
        _native.store_u64(self._data, _LEAVE, 1)

    def stay(self) -> None:
        """Take `leave` back, before workers are spawned."""
        _native.store_u64(self._data, _LEAVE, 0)

    def seat(self, worker: int) -> None:
        """Prepare a line for a worker about to be spawned, which has no part in this round."""
        for word in (_DEALT, _ARRIVED, _FINISHED):
            _native.store_u64(self._data, self._at(worker, word), 0)

    def span_ns(self, worker: int) -> tuple[int, int]:
        """When a worker that has finished began and ended the round."""
        line = self._lines[worker]
        return int(line["begin_ns"]), int(line["end_ns"])

    def done(self, worker: int) -> int:
        """Examples of the round that a worker which has finished did."""
        return int(self._lines[worker]["done"])

    # -- a worker's ------------------------------------------------------------------------------

    def next_share(self, worker: int, last: int) -> tuple[int, Share] | None:
        """Wait for a round after `last`; returns its number and share, or None to leave."""
        while True:
            if _native.load_u64(self._data, _LEAVE):
                return None
            number = _native.load_u64(self._data, self._at(worker, _DEALT))
            if number > last:
                line = self._lines[worker]
                return number, Share(
                    gamma=float(line["gamma"]),
                    load=bool(line["load"]),
                    probe=bool(line["probe"]),
                    start=int(line["start"]),
                    count=int(line["count"]),
                )
            time.sleep(_POLL_S)

    def begin(self, worker: int, number: int) -> bool:
        """Arrive, wait for the others, and note the time; False to leave."""
        _native.store_u64(self._data, self._at(worker, _ARRIVED), number)
        spins = 0
        while _native.load_u64(self._data, _GO) < number:
            if _native.load_u64(self._data, _LEAVE):
                return False
            spins += 1
            if spins > _SPINS:
                time.sleep(_POLL_S)
            elif hasattr(os, "sched_yield"):
                os.sched_yield()
        self._lines[worker]["begin_ns"] = monotonic_ns()
        return True

    def end(self, worker: int, number: int, done: int) -> None:
        """Note the time and what was done, and say so."""
        line = self._lines[worker]
        line["end_ns"], line["done"] = monotonic_ns(), done
        _native.store_u64(self._data, self._at(worker, _FINISHED), number)
