"""Steps under locks: `locked` holds one for a whole step, `aig` those of the blocks it touches.

    locked  read, compute and add under one lock: serial training by workers in no fixed order. No
            gradient is ever late, so it is a reference without races, and shows what locking costs
    aig     a worker computes like any lock-free one, then takes the lock of every block that its
            gradient touches, in ascending order, so that two workers never wait for each other in
            a circle; adds its step; and releases them (Niu et al. 2011, section 6). A block is 1024
            floats of a parameter, or a row where gradients have rows. A dense gradient touches
            everything, and then workers compute in parallel and add one by one

Everything else is `hogwild`: tickets, private moments, budget. If a holder dies, the next worker
that needs a lock takes it over, and the ticket counts as torn or comes back.

    segment    dtype   meaning
    step.lock  uint32  the one lock (`metal/native/updates/locks.h`), alone on its line
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlxhog import _native
from mlxhog.backends.backend import Float32, Grads
from mlxhog.optim import updates
from mlxhog.optim.gradients import Int32, Rows
from mlxhog.optim.updates import STRIPE, Slot
from mlxhog.strategies.context import Context, Lease, WriteResult
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker

LOCK = "step.lock"
SEGMENT = {LOCK: ("uint32", 32)}
"""The segment of the table above: one cache line of 128 bytes, of which the first word is used."""


def step_lock(context: Context) -> _native.Locks:
    """The lock of a strategy, word 0, as one worker takes it.

    A worker takes it over from a dead holder and waits for a living one; that counts as waiting
    (`locks.h`). An exception does not release it: it ends the worker's process, which then is a
    dead holder.
    """
    arena, generation = context.arena, context.entry.generation & 0xFFFF
    words, workers = arena.segment(LOCK), arena.segment("workers")
    return _native.Locks(words, workers, context.slot, generation)


class LockedWorker(HogwildWorker):
    """Hogwild under one lock."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._lock = step_lock(context)

    def read(self) -> None:
        """Take a snapshot, under the lock."""
        self._lock.acquire(0)
        super().read()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step, alone."""
        outcome = super().write(grads, lease, samples)
        self._lock.release(0)
        return outcome


class Locked(Hogwild):
    """Workers that hold one lock for a step."""

    Worker = LockedWorker

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The lock."""
        return SEGMENT


def lock_words(slot: Slot, grad: Float32 | Rows) -> Int32:
    """The locks that a gradient of a parameter touches, ascending, each once.

    Args:
        slot: of the parameter.
        grad: of its shape, or of some of its rows.
    """
    if slot.row_word0 is not None:
        touched = grad.index if isinstance(grad, Rows) else np.arange(slot.shape[0])
        return (slot.row_word0 + np.unique(touched)).astype(np.int32)
    first, last = np.array([slot.offset]), np.array([slot.offset + slot.size - 1])
    if isinstance(grad, Rows):
        width = updates.row_width(slot)
        first = slot.offset + np.unique(grad.index).astype(np.int64) * width
        last = first + width - 1
    ranges = zip(first // STRIPE, last // STRIPE, strict=True)
    return np.unique([word for low, high in ranges for word in range(low, high + 1)]).astype("<i4")


class AigWorker(HogwildWorker):
    """Hogwild that adds under the locks of all that it touches, taken together."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._locks = context.arena.locks(context.slot)

    def _follow(self, workers: int) -> None:
        """Write with plain stores: the holder of the locks is the only writer."""
        super()._follow(workers)
        self._target = replace(self._target, mode=updates.WRITE_MODES["racy"])

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step under its locks, of which neighbours may have one in common."""
        slots = self.context.arena.layout.slots
        every = [lock_words(slots[name], grad) for name, grad in grads.items()]
        words: list[int] = np.unique(np.concatenate(every)).tolist()
        for word in words:
            self._locks.acquire(word)
        outcome = super().write(grads, lease, samples)
        for word in words:
            self._locks.release(word)
        return outcome


class Aig(Hogwild):
    """Workers that lock the blocks they touch."""

    Worker = AigWorker
    carries_tables = False  # they lock parameters, not rows of tables
