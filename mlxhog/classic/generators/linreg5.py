"""Linear regression on five dense features: tiny, convex, and all of it on one cache line."""

from __future__ import annotations

import numpy as np

from mlxhog.classic.datasets import DenseRows

WEIGHTS = (1.0, -2.0, 3.0, -4.0, 5.0)
NOISE = 0.1


def linreg5(n: int = 10_000, *, seed: int = 0) -> DenseRows:
    """Draw rows of N(0, 1) and targets X w + noise, in the recorded reference's order of draws.

    Args:
        n: rows, at least 1.
        seed: equal seeds give equal rows.
    """
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, len(WEIGHTS)))
    noise = NOISE * rng.standard_normal(n)
    targets = features @ np.array(WEIGHTS) + noise
    return DenseRows(features.astype(np.float32), targets.astype(np.float32))
