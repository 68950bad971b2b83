"""One lock around a step: it measures the cost of locking, and is a reference without races.

The lock is held for a whole step: read, compute and add. So it is serial training by workers in no
fixed order, and no gradient is ever late.

Everything else is `hogwild`: tickets, private moments, budget. The lock is crash-safe: if its
holder dies, the next worker takes it over, and the ticket counts as torn or comes back.

    segment    dtype   meaning
    step.lock  uint32  the lock word (`metal/native/updates/locks.h`), alone on its line
"""

from __future__ import annotations

from typing import ClassVar

from mlxhog import _native
from mlxhog.backends.backend import Grads
from mlxhog.strategies.context import Context, Lease, WriteResult
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker

LOCK = "step.lock"
MEASURED = "strategy {} measures the cost of locking for the workers that it begins with"
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


class Locked(Hogwild):
    """Workers that hold one lock for a step."""

    fixed_because: ClassVar[str] = MEASURED

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The lock."""
        return SEGMENT

    def worker(self, context: Context) -> LockedWorker:
        """Prepare one worker."""
        return LockedWorker(context)


class LockedWorker(HogwildWorker):
    """Hogwild under one lock."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
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
