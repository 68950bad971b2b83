"""NumPy reference of `versions.h`, for one writer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
UInt32 = NDArray[np.uint32]


def version_bump(*, counters: UInt32, blocks: Int32, n: int, n_counters: int, done: UInt32) -> None:
    """Add 1 to the counter of every block, equal blocks as often as they come."""
    inside = (blocks[:n] >= 0) & (blocks[:n] < n_counters)
    np.add.at(counters, blocks[:n][inside], np.uint32(1))
    done[:] = inside
