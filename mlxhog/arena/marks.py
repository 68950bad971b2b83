"""Marks: who is writing parameters now, for readers that take no lock.

The segment `live.marks` has a row per worker slot, and one more for the creator, each on cache
lines of its own:

    word 0       odd while this worker applies an update
    word 1 + k   odd while it writes parameter k, in the order of their names

A copy of a parameter is of one moment if no worker's mark was odd before it, and none has changed
after it; likewise the whole model by the words 0. A copy that is not of one moment is taken again a
few times, and nobody waits for it: no worker knows of it. Only an arena whose run keeps copies for
readers has marks; elsewhere marking does nothing. `metal/native/arena/control.h` says what orders
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena.arena import Arena
from mlxhog.arena.control import Counters
from mlxhog.arena.layout import Layout

Float32 = NDArray[np.float32]
SEGMENT = "live.marks"
LINE = 128
_LONGEST_NAP_S = 1e-3
TENSOR_TRIES = 8
TENSOR_WAIT_S = 0.002  # for a moment in which nobody writes a parameter
MODEL_TRIES = 4
MODEL_WAIT_S = 0.02  # for one in which nobody is amid an update


def marks_bytes(n_params: int, max_workers: int) -> int:
    """Size of the segment, for so many parameters (arrays) and worker slots."""
    return _row_bytes(n_params) * (max_workers + 1)


def _row_bytes(n_params: int) -> int:
    return -(-8 * (1 + n_params) // LINE) * LINE


class Marks:
    """One writer's row."""

    def __init__(self, arena: Arena, slot: int, *, whole: bool = False) -> None:
        """Find the row of a worker slot.

        Args:
            arena: may have no marks; then marking does nothing.
            slot: of the writer.
            whole: mark every parameter during an update, for writers that do not mark each.
        """
        layout = arena.layout
        self._words = arena.segment(SEGMENT) if SEGMENT in layout.segments else None
        self._update = _row_bytes(len(layout.slots)) * (slot - 1)
        self._at = {name: self._update + 8 * (1 + k) for k, name in enumerate(sorted(layout.slots))}
        self._whole = tuple(self._at) if whole else ()

    def begin_update(self) -> None:
        """Mark an update, before its first write; where it is marked already, it goes on.

        After an error in the midst of one the mark stays: that ends the worker, and its supervisor
        calls `settle`.
        """
        if self._words is not None:
            _native.begin_writing(self._words, self._update)
            for name in self._whole:
                self.begin(name)

    def end_update(self) -> None:
        """Mark the update as over, when it is counted."""
        if self._words is not None:
            for name in self._whole:
                self.end(name)
            _native.end_writing(self._words, self._update)

    def begin(self, name: str) -> None:
        """Mark one parameter, before it is written."""
        if self._words is not None:
            _native.begin_writing(self._words, self._at[name])

    def end(self, name: str) -> None:
        """Mark that it is written."""
        if self._words is not None:
            _native.end_writing(self._words, self._at[name])

    def settle(self, *, update: bool = True) -> None:
        """End what a dead writer was amid; its last update may be in the parameters in part.

        Args:
            update: whether its update is over, too; otherwise whoever follows it ends that.
        """
        for name in self._at:
            self.end(name)
        if update and self._words is not None:
            _native.end_writing(self._words, self._update)


class MarksReader:
    """All rows, for those who copy parameters meanwhile; read-only memory will do."""

    def __init__(
        self, words: NDArray[np.uint8], layout: Layout, slots: Sequence[int] | None = None
    ) -> None:
        """Look at the rows of all worker slots, or of one.

        Args:
            words: the segment.
            layout: of the arena.
            slots: neighbouring slots whose writes matter; None is all.
        """
        self._words = words
        self._stride = _row_bytes(len(layout.slots))
        rows = range(1, layout.max_workers + 2) if slots is None else slots
        self._first, self._n = self._stride * (rows[0] - 1), len(rows)
        self._at = {name: self._first + 8 * (1 + k) for k, name in enumerate(sorted(layout.slots))}

    def quiet(self, name: str | None = None) -> int | None:
        """What `unchanged` compares: a number while nobody writes a parameter, or the model."""
        at = self._first if name is None else self._at[name]
        return _native.nobody_writes(self._words, at, self._stride, self._n)

    def wait_until_quiet(self, name: str | None, limit_s: float) -> int | None:
        """The same, waiting for a moment in which nobody writes; None where there was none."""
        until, nap_s = time.monotonic() + limit_s, 0.0
        while (number := self.quiet(name)) is None and time.monotonic() < until:
            time.sleep(nap_s)
            nap_s = min(_LONGEST_NAP_S, nap_s + 2e-5)
        return number

    def unchanged(self, name: str | None, before: int | None) -> bool:
        """Whether nobody has written since `quiet` gave a number."""
        return before is not None and self.quiet(name) == before

    def writers(self) -> int:
        """Workers that are amid an update now."""
        at = range(self._first, self._first + self._n * self._stride, self._stride)
        return sum(_native.load_u64(self._words, offset) & 1 for offset in at)


# -- copies --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCopy:
    """What is known of a copy.

    Attributes:
        oldest: updates that are in it whole.
        version: updates that may be in it.
        mixed: parameters that are not as they were between two updates.
    """

    oldest: int
    version: int
    mixed: tuple[str, ...] = ()

    @property
    def consistent(self) -> bool:
        """Whether it is the model between two updates."""
        return self.oldest == self.version and not self.mixed


def copy_racily(out: Float32, shared: Float32) -> None:
    """Copy parameters as they are being written: every float is whole, each may be of another age.

    Args:
        out: (n,) float32.
        shared: the parameters, (n,) float32.
    """
    _native.snapshot(out, shared)


def copy_tensors(
    layout: Layout, marks: MarksReader, out: NDArray[np.float32], shared: NDArray[np.float32]
) -> list[str]:
    """Copy every parameter, each as it was between two updates of it.

    Args:
        layout: of both arrays.
        marks: of whoever writes `shared`.
        out: (n,) float32, to which the parameters go; nothing else is written.
        shared: the parameters.

    Returns:
        Names of those that were being written all the time.
    """
    mixed = []
    for name, slot in layout.slots.items():
        span = slice(slot.offset, slot.offset + slot.size)
        for _ in range(TENSOR_TRIES):
            before = marks.wait_until_quiet(name, TENSOR_WAIT_S)
            copy_racily(out[span], shared[span])
            if marks.unchanged(name, before):
                break
        else:
            mixed.append(name)
    return mixed


def copy_model(
    counters: Counters, marks: MarksReader, copy: Callable[[], list[str]], *, limit_s: float
) -> ModelCopy:
    """Copy the model as it was between two updates, if that can be had.

    Args:
        counters: of the arena.
        marks: of all who write it.
        copy: copies, and returns the names of parameters that it could not copy whole.
        limit_s: begins again as long as so much time has not gone by, a few times at most.
    """
    began = time.monotonic()
    for tries in range(1, MODEL_TRIES + 1):
        before = marks.wait_until_quiet(None, MODEL_WAIT_S)
        oldest = counters.load("version")
        mixed = copy()
        if marks.unchanged(None, before):
            return ModelCopy(oldest, oldest)
        if tries == MODEL_TRIES or time.monotonic() - began > limit_s:
            break
    under_way = marks.writers()  # before the count: an update that ends in between is in either
    return ModelCopy(oldest, counters.load("version") + under_way, tuple(mixed))
