"""Marks: which workers are writing parameters now, for readers that take no lock.

The segment `live.marks` has a row per worker slot, and one more for the creator, each on cache
lines of its own:

    word 0       odd while this worker applies an update
    word 1 + k   odd while it writes parameter k, in the order of their names

A copy of a parameter is consistent if no mark of this parameter was odd before the copy, and none
has changed after it. The words 0 do the same for the whole model. An inconsistent copy is repeated
a few times; workers do not notice it and never wait. Only an arena whose run publishes copies for
readers has marks; in others marking does nothing. The memory order stands in
`metal/native/arena/control.h`.
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
TENSOR_WAIT_S = 0.002  # longest wait for a moment in which no worker writes a parameter
MODEL_TRIES = 4
MODEL_WAIT_S = 0.02  # longest wait for a moment in which no worker applies an update


def marks_bytes(n_params: int, max_workers: int) -> int:
    """Size of the segment for `n_params` parameters (arrays) and `max_workers` worker slots."""
    return _row_bytes(n_params) * (max_workers + 1)


def _row_bytes(n_params: int) -> int:
    return -(-8 * (1 + n_params) // LINE) * LINE


class Marks:
    """One writer's row."""

    def __init__(self, arena: Arena, slot: int, *, whole: bool = False) -> None:
        """Find the row of a worker slot.

        Args:
            arena: the arena; if it has no marks, marking does nothing.
            slot: slot of the writer.
            whole: mark all parameters during an update, for writers that do not mark single ones.
        """
        layout = arena.layout
        self._words = arena.segment(SEGMENT) if SEGMENT in layout.segments else None
        self._update = _row_bytes(len(layout.slots)) * (slot - 1)
        self._at = {name: self._update + 8 * (1 + k) for k, name in enumerate(sorted(layout.slots))}
        self._whole = tuple(self._at) if whole else ()

    def begin_update(self) -> None:
        """Mark an update, before its first write; a second call before `end_update` does nothing.

        After an error within an update the mark stays: the error ends the worker, and then its
        supervisor calls `settle`.
        """
        if self._words is not None:
            _native.begin_writing(self._words, self._update)
            for name in self._whole:
                self.begin(name)

    def end_update(self) -> None:
        """End the mark of the update, after the version counter was increased."""
        if self._words is not None:
            for name in self._whole:
                self.end(name)
            _native.end_writing(self._words, self._update)

    def begin(self, name: str) -> None:
        """Mark one parameter, before it is written."""
        if self._words is not None:
            _native.begin_writing(self._words, self._at[name])

    def end(self, name: str) -> None:
        """End the mark of one parameter, after it was written."""
        if self._words is not None:
            _native.end_writing(self._words, self._at[name])

    def settle(self, *, update: bool = True) -> None:
        """End the marks of a dead writer; a part of its last update may be in the parameters.

        Args:
            update: whether to end the mark of its update, too; if not, its successor ends it.
        """
        for name in self._at:
            self.end(name)
        if update and self._words is not None:
            _native.end_writing(self._words, self._update)


class MarksReader:
    """The rows of all writers, for readers that copy parameters; the memory may be read-only."""

    def __init__(
        self, words: NDArray[np.uint8], layout: Layout, slots: Sequence[int] | None = None
    ) -> None:
        """Read the rows of all worker slots, or of some neighbouring ones.

        Args:
            words: the segment.
            layout: layout of the arena.
            slots: neighbouring slots whose writes matter; None is all.
        """
        self._words = words
        self._stride = _row_bytes(len(layout.slots))
        rows = range(1, layout.max_workers + 2) if slots is None else slots
        self._first, self._n = self._stride * (rows[0] - 1), len(rows)
        self._at = {name: self._first + 8 * (1 + k) for k, name in enumerate(sorted(layout.slots))}

    def quiet(self, name: str | None = None) -> int | None:
        """The sum of the marks of a parameter (None: the model); None while a worker writes it."""
        at = self._first if name is None else self._at[name]
        return _native.nobody_writes(self._words, at, self._stride, self._n)

    def wait_until_quiet(self, name: str | None, limit_s: float) -> int | None:
        """As `quiet`, but wait up to `limit_s` for a moment without writers; None if none came."""
        until, nap_s = time.monotonic() + limit_s, 0.0
        while (number := self.quiet(name)) is None and time.monotonic() < until:
            time.sleep(nap_s)
            nap_s = min(_LONGEST_NAP_S, nap_s + 2e-5)
        return number

    def unchanged(self, name: str | None, before: int | None) -> bool:
        """Whether no worker has written since `quiet` returned `before`; False if that is None."""
        return before is not None and self.quiet(name) == before

    def writers(self) -> int:
        """Number of workers that are applying an update now."""
        at = range(self._first, self._first + self._n * self._stride, self._stride)
        return sum(_native.load_u64(self._words, offset) & 1 for offset in at)


# -- copies --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCopy:
    """Which updates are in a copy.

    Attributes:
        oldest: number of updates that are completely in it.
        version: number of updates of which at least a part may be in it.
        mixed: parameters that were written during the copy, so parts of an update may be missing.
    """

    oldest: int
    version: int
    mixed: tuple[str, ...] = ()

    @property
    def consistent(self) -> bool:
        """Whether the copy is the model as it was between two updates."""
        return self.oldest == self.version and not self.mixed


def copy_racily(out: Float32, shared: Float32) -> None:
    """Copy parameters while others write them: floats are whole, but of different versions.

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
        layout: layout of both arrays.
        marks: marks of the writers of `shared`.
        out: destination, (n,) float32; only the parameters in it are written.
        shared: the parameters.

    Returns:
        Names of the parameters for which no consistent copy was possible.
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
    """Copy the model as it was between two updates, if possible.

    Args:
        counters: counters of the arena.
        marks: marks of all its writers.
        copy: makes the copy, and returns the names of parameters that it could not copy whole.
        limit_s: no new try after this time; there are a few tries at most.
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
    in_progress = marks.writers()  # first: an update that ends now is then counted at least once
    return ModelCopy(oldest, counters.load("version") + in_progress, tuple(mixed))
