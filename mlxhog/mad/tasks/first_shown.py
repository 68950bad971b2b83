"""Where in its row a key was shown first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def first_shown(keys: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return for every key (n, pairs) the position of the leftmost one in its row that equals it.

    A key that was not shown before is its own.
    """
    n, pairs = keys.shape
    row = np.arange(n)[:, None]
    order = np.argsort(keys, axis=1, kind="stable")  # equal keys stay in the order of positions
    sorted_keys = keys[row, order]
    begins = np.ones((n, pairs), bool)
    begins[:, 1:] = sorted_keys[:, 1:] != sorted_keys[:, :-1]
    # Positions in a run of equal keys only rise, but not from run to run: carry the run's index.
    run_start = np.maximum.accumulate(np.where(begins, np.arange(pairs), 0), axis=1)
    first = np.empty((n, pairs), np.int64)
    first[row, order] = order[row, run_start]
    return first
