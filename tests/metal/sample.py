"""Random float32 arrays, and outputs full of NaN so that an entry left unwritten shows."""

import numpy as np


def draw(*shape, seed=0, scale=1.0):
    """Normal numbers; different for every shape and seed."""
    r = np.random.default_rng((seed, *shape))
    return (scale * r.standard_normal(shape)).astype(np.float32)


def unwritten(*shape):
    return np.full(shape, np.nan, np.float32)
