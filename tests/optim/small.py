"""A few parameters in one private segment, as an optimizer's target."""

import math

import numpy as np

from mlxhog.arena import layout
from mlxhog.optim import Target
from mlxhog.optim.rule import new_state

RACY = 1  # needs no locks; with one worker all modes are the same (tests/metal/test_one_worker.py)


class Slot(layout.Slot):
    def __init__(self, name, shape, offset, kind="dense", row_word0=None):
        size = math.prod(shape)
        super().__init__(name, shape, offset, size, kind, init="zeros", row_word0=row_word0)


MATRIX = Slot("matrix", (6, 9), 3)
BIAS = Slot("bias", (9,), 64)
EMBEDDING = Slot("embedding", (11, 5), 80, "rows", row_word0=0)
SLOTS = {slot.name: slot for slot in (MATRIX, BIAS, EMBEDDING)}
N = 160


def initial(seed=0):
    return np.random.default_rng(seed).standard_normal(N, dtype=np.float32)


def target(optimizer, flat, *decay):
    """A target over `flat` with fresh state, where weight decay applies to the names given."""
    shapes = optimizer.state_shapes({slot.name: slot.shape for slot in SLOTS.values()})
    private, places = new_state(optimizer.state_segments, shapes, N)
    return Target(
        flat=flat,
        slots=SLOTS,
        locks=None,
        mode=RACY,
        private=private,
        places=places,
        shared={name: np.zeros(N, np.float32) for name in optimizer.shared_segments},
        decay=frozenset(decay),
    )


def parameter(flat, slot):
    return flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
