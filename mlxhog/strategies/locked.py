"""One lock around a step: it measures the cost of locking, and is a reference without races.

The lock is held for a whole step: read, compute and add. So it is serial training by workers in no
fixed order, and no gradient is ever late.

Everything else is `hogwild`: tickets, private moments, budget. The lock is crash-safe: if its
holder dies, the next worker takes it over, and the ticket counts as torn or comes back.

    segment    dtype   meaning
    step.lock  uint32  the lock word (`metal/native/updates/locks.h`), alone on its line
"""

from __future__ import annotations

from mlxhog import _native
from mlxhog.backends.backend import Grads
from mlxhog.strategies.context import Context, Lease, WriteResult
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker

LOCK = "step.lock"
MEASURED = "strategy {} measures the cost of locking for the workers that it begins with"
WORDS = 32
"""Lock words in the segment: one cache line of 128 bytes, of which the first is used."""


class StepLock:
    """The lock of one strategy, as one worker takes it.

    A worker takes it over from a dead holder and waits for a living one. An exception does not
    release it: it ends the worker's process, which then is a dead holder.
    """

    def __init__(self, context: Context) -> None:
        """Use the arena's segment `step.lock`."""
        arena, generation = context.arena, context.entry.generation & 0xFFFF
        words, workers = arena.segment(LOCK), arena.segment("workers")
        self._locks = _native.Locks(words, workers, context.slot, generation)

    def acquire(self) -> None:
        """Take it; a wait counts as waiting (`locks.h`)."""
        self._locks.acquire(0)

    def release(self) -> None:
        """Give it back."""
        self._locks.release(0)


def lock_segment() -> dict[str, tuple[str, int]]:
    """The segment of the table above."""
    return {LOCK: ("uint32", WORDS)}


class Locked(Hogwild):
    """Workers that hold one lock for a step."""

    @property
    def fixed(self) -> str | None:
        """It measures the cost of locking for a fixed number of workers."""
        return MEASURED.format(self.name)

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The lock."""
        return lock_segment()

    def worker(self, context: Context) -> LockedWorker:
        """Prepare one worker."""
        return LockedWorker(context)


class LockedWorker(HogwildWorker):
    """Hogwild under one lock."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        super().__init__(context)
        self._lock = StepLock(context)

    def read(self) -> None:
        """Take a snapshot, under the lock."""
        self._lock.acquire()
        super().read()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step, alone."""
        outcome = super().write(grads, lease, samples)
        self._lock.release()
        return outcome
