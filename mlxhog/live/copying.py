"""Copying shared parameters while others write them, so that what is of one moment is known.

What is copied in between two marks that agree (`mlxhog/arena/marks.py`) is of one moment. A copy
that is not is taken again a few times, and never waited for: nobody who trains knows of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mlxhog.arena.control import Counters
from mlxhog.arena.layout import Layout
from mlxhog.arena.marks import MarksReader
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32

TENSOR_TRIES = 8
TENSOR_WAIT_S = 0.002  # for a moment in which nobody writes a parameter
MODEL_TRIES = 4
MODEL_WAIT_S = 0.02  # for one in which nobody is amid an update


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


def copy_tensors(layout: Layout, marks: MarksReader, out: Float32, shared: Float32) -> list[str]:
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
            updates.snapshot(out[span], shared[span])
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
