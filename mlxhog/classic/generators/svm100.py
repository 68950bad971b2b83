"""The reimplementation's synthetic support vector machine: 100 features, a fifth of them set.

"Sparsity 0.2" is not sparse in Hogwild's sense: with about 20 of 100 coordinates per row, 98 % of
all pairs of rows meet (spec hogwild.md 3.4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import SparseRows

N_FEATURES = 100
DENSITY = 0.2
_BLOCK = 20_000  # rows drawn at once; the stream of random numbers does not depend on it


def svm100(
    n: int = 10_000, n_test: int = 1_000, *, seed: int = 0
) -> tuple[SparseRows, SparseRows | None]:
    """Draw a training and a test set that a plane through the origin separates.

    The order of draws is the recorded reference's, and the test set comes after it: all masks, all
    values, the plane; then masks and values of the test rows.

    Args:
        n: training rows, at least 1.
        n_test: test rows; with 0 there is no test set.
        seed: equal seeds give equal sets.
    """
    rng = np.random.default_rng(seed)
    train = _draw(rng, n)
    plane = rng.standard_normal(N_FEATURES)
    test = _rows(*_draw(rng, n_test), plane) if n_test else None
    return _rows(*train, plane), test


def _draw(rng: np.random.Generator, n: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The mask (n, 100) and the values where it is set, row by row."""
    mask = np.empty((n, N_FEATURES), dtype=np.bool_)
    for start in range(0, n, _BLOCK):
        block = mask[start : start + _BLOCK]
        block[:] = rng.random(block.shape) < DENSITY
    values = []
    for start in range(0, n, _BLOCK):
        block = mask[start : start + _BLOCK]
        values.append(rng.standard_normal(block.shape)[block])
    return mask, np.concatenate(values)


def _rows(
    mask: NDArray[np.bool_], values: NDArray[np.float64], plane: NDArray[np.float64]
) -> SparseRows:
    """Rows with the sign of their product with the plane; a product of 0 counts as positive.

    One row in five thousand million has no feature at all; it is left out.
    """
    mask = mask[mask.any(axis=1)]
    indices = np.nonzero(mask)[1].astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    scores = np.add.reduceat(values * plane[indices], indptr[:-1])
    return SparseRows(
        indptr=indptr,
        indices=indices,
        values=values.astype(np.float32),
        labels=np.where(scores >= 0, np.float32(1), np.float32(-1)),
        n_features=N_FEATURES,
    )
