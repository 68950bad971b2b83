"""Projection onto the simplex in plain NumPy, addition by addition as the native one does it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def project_onto_simplex(v: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest point of {x >= 0, sum x = 1} to v, (labels,), at least one label.

    With v sorted in falling order, theta = (v_1 + .. + v_k - 1) / k for the largest k whose v_k
    stays above it; the rest becomes zero. Source: spec hogwild.md 3.3.
    """
    falling = np.sort(v)[::-1]
    counts = np.arange(1, len(v) + 1, dtype=v.dtype)
    thetas = (np.cumsum(falling, dtype=v.dtype) - v.dtype.type(1)) / counts
    # Once false it stays false, so the first failure ends the search.
    stays = falling > thetas
    k = len(v) if stays.all() else max(int(np.argmin(stays)), 1)
    nearest: NDArray[np.float32] = np.maximum(v - thetas[k - 1], v.dtype.type(0))
    return nearest
