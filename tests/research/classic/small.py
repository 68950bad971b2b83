"""A small sparse SVM."""

import numpy as np

from mlxhog.research.classic.problem import Defaults, SparseRows
from mlxhog.research.classic.problems.linear import SparseLinear

STEPS = Defaults(lr=0.1, beta=0.9, epochs=3, writes=("racy", "lossless", "hot-cold"))


def hinge(n=600, d=100, row=8, seed=0):
    """Rows of `row` features out of `d`, the low ones more often; separable but for noise."""
    rng = np.random.default_rng(seed)
    low = (d // row * rng.random((n, row)) ** 3).astype(np.int32)
    indices = np.sort(row * low + np.arange(row, dtype=np.int32), axis=1).ravel()  # distinct
    values = rng.standard_normal(n * row).astype(np.float32)
    truth = rng.standard_normal(d)
    indptr = np.arange(0, n * row + 1, row, dtype=np.int64)
    labels = np.sign(np.add.reduceat(values * truth[indices], indptr[:-1])).astype(np.float32)
    rows = SparseRows(indptr, indices, values, labels, d)
    return SparseLinear("small-svm", "a few rows", rows, None, "hinge", 0.01, STEPS)
