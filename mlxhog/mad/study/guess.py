"""How long a study may take, before anything has run: a guess, which only its order is worth."""

from __future__ import annotations

import time

import numpy as np

from mlxhog.mad.study.planning import Planning, steps_of

SIZE = 512
EFFICIENCY = 0.15
"""Share of the speed of one matrix product that the training of a small model gets, measured on
candidates of width 64 and 128 on two cores; recurrent ones get a third of it."""


def guess(planning: Planning) -> float:
    """Return seconds of all runs of a study, one after the other, without early ends.

    A step costs 6 operations per weight and token (forward, and twice that backward).
    """
    operations = 0.0
    for run in planning.runs(planning.first):
        config = run.config
        tokens = config.protocol.batch_size * config.settings["seq_len"]
        operations += 6.0 * run.params * tokens * steps_of(config)
    return operations * planning.candidates / (EFFICIENCY * _operations_per_s())


def _operations_per_s() -> float:
    """Speed of a float32 matrix product on one core, the best of a few."""
    a = np.ones((SIZE, SIZE), np.float32)
    best = float("inf")
    for _ in range(5):
        began_s = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began_s)
    return 2 * SIZE**3 / best
