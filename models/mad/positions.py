"""Sines and cosines of positions, as Vaswani et al. 2017 (arXiv:1706.03762) add them."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=16)
def sincos(length: int, d: int) -> NDArray[np.float32]:
    """Return the table (length, d) float32: sin at even, cos at odd columns, wavelengths to 1e4."""
    at = np.arange(length)[:, None] / 1e4 ** (np.arange(0, d, 2)[None, :] / d)
    table = np.empty((length, d), np.float32)
    table[:, 0::2] = np.sin(at)
    table[:, 1::2] = np.cos(at[:, : d // 2])
    return table
