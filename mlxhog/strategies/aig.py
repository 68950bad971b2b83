"""Locks on the blocks that a step touches: AIG of the Hogwild paper (Niu et al. 2011, section 6).

A worker computes its gradient like any lock-free one. Then it takes the lock of every block that
the gradient touches, in ascending order, so that two workers never wait for each other in a circle;
adds its step; and releases the locks. Blocks are the arena's own: 1024 floats of a parameter, or
a row where gradients have rows. Steps that touch nothing in common do not wait; a dense gradient
touches everything, and then workers compute in parallel and add one by one.

A worker that dies with locks never stops the others: the next worker that needs one takes it over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from mlxhog.backends.backend import Float32, Grads
from mlxhog.optim import updates
from mlxhog.optim.gradients import Int32, Rows
from mlxhog.optim.updates import STRIPE, Slot
from mlxhog.strategies.context import Context, Lease, WriteResult
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from mlxhog.strategies.locked import MEASURED


def lock_words(slot: Slot, grad: Float32 | Rows) -> Int32:
    """The locks that a gradient of a parameter touches, ascending, each once.

    Args:
        slot: of the parameter.
        grad: of its shape, or of some of its rows.
    """
    if slot.row_word0 is not None:
        touched = grad.index if isinstance(grad, Rows) else np.arange(slot.shape[0])
        return (slot.row_word0 + np.unique(touched)).astype(np.int32)
    if isinstance(grad, Rows):
        width = updates.row_width(slot)
        first = slot.offset + np.unique(grad.index).astype(np.int64) * width
        ranges = zip(first // STRIPE, (first + width - 1) // STRIPE, strict=True)
        return np.unique([word for low, high in ranges for word in range(low, high + 1)]).astype(
            np.int32
        )
    last = slot.offset + slot.size - 1
    return np.arange(slot.offset // STRIPE, last // STRIPE + 1, dtype=np.int32)


class Aig(Hogwild):
    """Workers that lock the blocks they touch."""

    no_tables: ClassVar[str] = (
        "strategy aig locks parameters, not rows of tables; take --strategy hogwild"
    )
    fixed_because: ClassVar[str] = MEASURED

    def worker(self, context: Context) -> AigWorker:
        """Prepare one worker."""
        return AigWorker(context)


class AigWorker(HogwildWorker):
    """Hogwild that adds under the locks of all that it touches, taken together."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        super().__init__(context)
        self._locks = context.arena.locks(context.slot)

    def _follow(self, workers: int) -> None:
        """Write with plain stores: the holder of the locks is the only writer."""
        super()._follow(workers)
        self._target = replace(self._target, mode=updates.WRITE_MODES["racy"])

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step under its locks."""
        words = self._touched(grads)
        for word in words:
            self._locks.acquire(word)
        outcome = super().write(grads, lease, samples)
        for word in words:
            self._locks.release(word)
        return outcome

    def _touched(self, grads: Grads) -> list[int]:
        """The locks of a gradient, ascending; neighbours may have one in common."""
        slots = self.context.arena.layout.slots
        every = [lock_words(slots[name], grad) for name, grad in grads.items()]
        touched: list[int] = np.unique(np.concatenate(every)).tolist()
        return touched
