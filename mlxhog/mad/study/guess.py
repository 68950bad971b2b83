"""How long a study may take: as its runs so far, or before there are any, a guess."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mlxhog.mad.study.planning import Planning, steps_of
from mlxhog.mad.study.record import Record

SIZE = 512
EFFICIENCY = 0.4
"""Share of the speed of one matrix product that training a candidate of width 64 was measured to
have on torch CPU. Wide ones have more, recurrent ones less."""


def seconds_of_a_run(planning: Planning, records: Sequence[Record], cores: int) -> float:
    """Return the mean seconds of a run of a study.

    Args:
        planning: of the study.
        records: runs that ended; where there is one, their mean is returned.
        cores: that NumPy multiplies on.

    Otherwise a step is taken to cost 6 operations per weight and token, forward and backward.
    """
    if records:
        return sum(record.seconds for record in records) / len(records)
    runs = planning.runs(planning.first)
    operations = 0.0
    for run in runs:
        config = run.config
        tokens = config.protocol.batch_size * config.settings["seq_len"]
        operations += 6.0 * run.params * tokens * steps_of(config)
    return operations / len(runs) / (EFFICIENCY * _operations_per_s() / cores)


def _operations_per_s() -> float:
    """Speed of a float32 matrix product, the best of a few."""
    a = np.ones((SIZE, SIZE), np.float32)
    best = float("inf")
    for _ in range(5):
        began_s = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began_s)
    return 2 * SIZE**3 / best
