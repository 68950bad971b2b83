"""Random float32 arrays, and outputs full of NaN so that an entry left unwritten shows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def draw(*shape, seed=0, scale=1.0):
    """Normal numbers; different for every shape and seed."""
    r = np.random.default_rng((seed, *shape))
    return (scale * r.standard_normal(shape)).astype(np.float32)


def unwritten(*shape):
    return np.full(shape, np.nan, np.float32)


def wide(*arrays):
    """The same numbers in float64."""
    return tuple(x.astype(np.float64) for x in arrays)
