"""A few parameters in one private segment, as an optimizer's target, and gradients for them."""

import math

import numpy as np

from mlxhog.arena import layout
from mlxhog.config.components import OPTIMIZERS
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.optim import UpdateTarget
from mlxhog.optim.gradients import Rows
from mlxhog.optim.updates import WRITE_MODES

RACY = WRITE_MODES["racy"]  # needs no locks; with one worker all modes are the same


class Slot(layout.Slot):
    def __init__(self, name, shape, offset, kind="dense", row_word0=None):
        size = math.prod(shape)
        super().__init__(name, shape, offset, size, kind, row_word0=row_word0)


MATRIX = Slot("matrix", (6, 9), 3)
BIAS = Slot("bias", (9,), 64)
EMBEDDING = Slot("embedding", (11, 5), 80, "rows", row_word0=0)
SLOTS = {slot.name: slot for slot in (MATRIX, BIAS, EMBEDDING)}
HIDDEN = frozenset({"matrix"})
N = 160
NUMBERS = {
    "momentum": 0.6, "beta1": 0.8, "beta2": 0.9, "beta3": 0.7, "eps": 1e-6, "weight_decay": 0.2,
}  # fmt: skip


def chosen(name="adamw", **others):
    """A configuration of one worker with an optimizer, and those of `NUMBERS` that it has."""
    has = options(OPTIMIZERS.find(name))
    own = {number: value for number, value in NUMBERS.items() if number in has}
    return TrainConfig(strategy="serial", optimizer={"name": name, **own}, **others)


def initial(seed=0):
    return np.random.default_rng(seed).standard_normal(N, dtype=np.float32)


def gradients(step):
    """Gradients of all parameters, that of the embedding by rows, with a duplicate."""
    rng = np.random.default_rng(step)
    grads = {
        slot.name: rng.standard_normal(slot.shape, dtype=np.float32) for slot in (MATRIX, BIAS)
    }
    index = np.array([7, 2, 7, 4], np.int32)
    return {**grads, "embedding": Rows(index, rng.standard_normal((4, 5), dtype=np.float32))}


def dense_gradients(step):
    rng = np.random.default_rng(step)
    return {name: rng.standard_normal(slot.shape, dtype=np.float32) for name, slot in SLOTS.items()}


def target(optimizer, flat, *decay, slots=SLOTS):
    """A target over `flat` with fresh state, where weight decay applies to the names given."""
    return UpdateTarget.alone(optimizer, flat, slots, frozenset(decay))


def trained(rule, steps=6, *, lr=0.1, grads=gradients, **how):
    """Parameters and target of one worker after some steps."""
    flat = initial()
    where = target(rule, flat, "matrix", "embedding")
    for step in range(1, steps + 1):
        rule.step(where, grads(step), lr=lr, step=step, seed=step, **how)
    return flat, where
