"""Marks: which workers are writing parameters now, for readers that take no lock.

The segment `live.marks` has a word per worker slot, and one more for the creator, each on a cache
line of its own: odd while this worker applies an update. A copy of the parameters is the model
between two updates if no mark was odd before the copy, and none has changed after it. Else the copy
is repeated a few times; workers do not notice it and never wait. Only an arena whose run publishes
copies for readers has marks; in others marking does nothing. The memory order stands in
`metal/native/arena/control.h`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena.arena import Arena
from mlxhog.arena.words import LINE

Float32 = NDArray[np.float32]
SEGMENT = "live.marks"
TRIES = 4
WAIT_S = 0.02  # longest wait for a moment in which no worker applies an update
_LONGEST_NAP_S = 1e-3


def marks_bytes(max_workers: int) -> int:
    """Size of the segment for this number of worker slots."""
    return LINE * (max_workers + 1)


class Marks:
    """One writer's word."""

    def __init__(self, arena: Arena, slot: int) -> None:
        """Find the word of a worker slot; if the arena has no marks, marking does nothing."""
        self._words = arena.segment(SEGMENT) if SEGMENT in arena.layout.segments else None
        self._at = LINE * (slot - 1)

    def begin_update(self) -> None:
        """Mark an update, before its first write; a second call before `end_update` does nothing.

        After an error within an update the mark stays: the error ends the worker, and its
        supervisor then ends the mark, or its successor does with the update.
        """
        if self._words is not None:
            _native.begin_writing(self._words, self._at)

    def end_update(self) -> None:
        """End the mark, after the version counter was increased; also that of a dead writer."""
        if self._words is not None:
            _native.end_writing(self._words, self._at)


class MarksReader:
    """The words of all writers, for readers that copy parameters; the memory may be read-only."""

    def __init__(self, arena: Arena) -> None:
        """Read those of an arena that has marks."""
        self._words, self._n = arena.segment(SEGMENT), arena.layout.max_workers + 1

    def quiet(self) -> int | None:
        """The sum of the marks; None while a worker applies an update."""
        return _native.nobody_writes(self._words, 0, LINE, self._n)

    def writers(self) -> int:
        """Number of workers that are applying an update now."""
        return sum(_native.load_u64(self._words, LINE * k) & 1 for k in range(self._n))

    def copy(self, version: Callable[[], int], copy: Callable[[], None], limit_s: float) -> Updates:
        """Copy the model as it was between two updates, if possible.

        Args:
            version: updates so far, by the arena's counter.
            copy: makes the copy.
            limit_s: no new try after this time; there are a few tries at most.
        """
        began = time.monotonic()
        for tries in range(1, TRIES + 1):
            before, oldest = self._wait_until_quiet(), version()
            copy()
            if before is not None and self.quiet() == before:
                return oldest, oldest
            if tries == TRIES or time.monotonic() - began > limit_s:
                break
        in_progress = self.writers()  # first: an update that ends now is then counted
        return oldest, max(oldest + 1, version() + in_progress)

    def _wait_until_quiet(self) -> int | None:
        until, nap_s = time.monotonic() + WAIT_S, 0.0
        while (number := self.quiet()) is None and time.monotonic() < until:
            time.sleep(nap_s)
            nap_s = min(_LONGEST_NAP_S, nap_s + 2e-5)
        return number


Updates = tuple[int, int]
"""The updates in a copy: those that are completely in it, and those of which a part may be."""


def copy_racily(out: Float32, shared: Float32) -> None:
    """Copy parameters while others write them: floats are whole, but of different versions.

    Args:
        out: (n,) float32.
        shared: the parameters, (n,) float32.
    """
    _native.snapshot(out, shared)
