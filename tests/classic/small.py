"""Small problems whose every step can be followed in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlxhog import _native
from mlxhog.classic.problem import Defaults, Float32, Int32, Int64

WIDTH = 16


def row_of(rows, number):
    """Features and values of one example, as views."""
    entries = slice(rows.indptr[number], rows.indptr[number + 1])
    return rows.indices[entries], rows.values[entries]


def build(memory):
    """The hinge problem over the arena, in a worker."""
    data = memory.data
    return _native.LinearProblem(
        memory.params["x"],
        data["indptr"],
        data["indices"],
        data["values"],
        data["labels"],
        data["shrink"],
    )


@dataclass(frozen=True)
class Hinge:
    """A sparse SVM: f(x) = sum of hinge(y z.x) + lam sum x_u^2 / d_u."""

    indptr: Int64
    indices: Int32
    values: Float32
    labels: Float32
    n_features: int
    lam: float = 0.01
    name: str = "small-svm"
    about: str = "a few rows"
    defaults: Defaults = Defaults(
        lr=0.1, beta=0.9, epochs=3, writes=("racy", "lossless", "hot-cold")
    )

    @property
    def n_examples(self):
        return len(self.labels)

    @property
    def kernel(self):
        return build

    @property
    def shrink(self):
        degree = np.maximum(1, np.bincount(self.indices, minlength=self.n_features))
        return (2 * self.lam / degree).astype(np.float32)

    def initial(self, seed):
        return {"x": np.zeros((-(-self.n_features // WIDTH), WIDTH), np.float32)}

    def data(self):
        shrink = np.zeros(self.initial(0)["x"].size, np.float32)
        shrink[: self.n_features] = self.shrink
        return {
            "indptr": self.indptr,
            "indices": self.indices,
            "values": self.values,
            "labels": self.labels,
            "shrink": shrink,
        }

    def measures(self, params):
        x = params["x"].reshape(-1)[: self.n_features].astype(np.float64)
        margins = self.labels * np.add.reduceat(self.values * x[self.indices], self.indptr[:-1])
        return {
            "objective": float(np.maximum(0, 1 - margins).sum() + self.lam * (x**2).sum()),
            "train_error": float((margins <= 0).mean()),
        }

    def supports(self):
        return self.indptr, self.indices, self.n_features


def hinge(n=600, d=100, row=8, seed=0):
    """Rows of `row` features out of `d`, the low ones more often; separable but for noise."""
    rng = np.random.default_rng(seed)
    low = (d // row * rng.random((n, row)) ** 3).astype(np.int32)
    indices = np.sort(row * low + np.arange(row, dtype=np.int32), axis=1).ravel()  # distinct
    values = rng.standard_normal(n * row).astype(np.float32)
    truth = rng.standard_normal(d)
    indptr = np.arange(0, n * row + 1, row, dtype=np.int64)
    labels = np.sign(np.add.reduceat(values * truth[indices], indptr[:-1])).astype(np.float32)
    return Hinge(indptr, indices, values, labels, d)
