"""Linear models on sparse rows: what svm, logistic, least-squares and synthetic-svm share.

f(x) = sum over rows a of [ loss(y_a, z_a.x) + lam sum over u in a of x_u^2 / d_u ], where d_u
counts the rows that have feature u: over an epoch each coordinate is shrunk once, and only where a
step touches it anyway. Source: Niu et al. 2011, Hogwild!, section 3; spec hogwild.md 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.classic.datasets import SparseRows
from mlxhog.classic.problem import Block, Defaults, Float32, Int32, Int64, Kernel, Memory
from mlxhog.classic.problems import losses

LANES = 16
"""Floats behind one lock word: 64 bytes, one cache line of most processors."""

WRITES = ("hot-cold", "racy", "lossless")


@dataclass(frozen=True, eq=False)
class SparseLinear:
    """A sparse linear model with its data; a `Problem`.

    Attributes:
        name: of the problem.
        about: what the data are.
        train: rows to learn from.
        test: rows to be measured on, with as many features.
        loss: of a row.
        lam: weight of the squares.
        defaults: steps and epochs.
        active_rows: shrink only in rows whose loss has a slope, by the more.
    """

    name: str
    about: str
    train: SparseRows
    test: SparseRows | None
    loss: losses.Loss
    lam: float
    defaults: Defaults
    active_rows: bool = False

    @property
    def n_examples(self) -> int:
        """Training rows."""
        return self.train.n_rows

    @property
    def kernel(self) -> Kernel:
        """Builds the native problem in a worker."""
        return partial(_build, loss=self.loss, active_rows=self.active_rows)

    def params(self) -> Mapping[str, Block]:
        """One vector x, in rows of a cache line; what is past the last feature stays 0."""
        return {"x": Block((-(-self.train.n_features // LANES), LANES))}

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """Zeros: the objective is convex."""
        return {"x": np.zeros(self.params()["x"].shape, np.float32)}

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The rows as they are, and 2 lam / d_u of each feature if there is anything to shrink."""
        rows = self.train
        found: dict[str, NDArray[Any]] = {
            "indptr": rows.indptr,
            "indices": rows.indices,
            "values": rows.values,
            "labels": rows.labels,
        }
        if self.lam:
            shrink = 2 * self.lam / np.maximum(rows.degrees(), 1)
            found["shrink"] = shrink.astype(np.float32)
        return found

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective f(x); mean losses without the squares, and errors, of both sets."""
        x = params["x"].ravel()[: self.train.n_features].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(x)[self.train.degrees() > 0].sum()
            found = self._of("train", self.train, x)
            objective = self.train.n_rows * found["train_loss"] + self.lam * squares
            test = {} if self.test is None else self._of("test", self.test, x)
        return {"objective": float(objective), **found, **test}

    def supports(self) -> tuple[Int64, Int32, int]:
        """The features of each row."""
        return self.train.indptr, self.train.indices, self.train.n_features

    def _of(self, which: str, rows: SparseRows, x: losses.Float64) -> dict[str, float]:
        scores, labels = rows.scores(x), rows.labels.astype(np.float64)
        found = {f"{which}_loss": float(losses.values(self.loss, scores, labels).mean())}
        if rows.label_kind == "signs":
            found[f"{which}_error"] = losses.wrong_signs(scores, labels)
        return found


def _build(memory: Memory, *, loss: losses.Loss, active_rows: bool) -> _native.LinearProblem:
    data = memory.data
    return _native.LinearProblem(
        memory.params["x"],
        data["indptr"],
        data["indices"],
        data["values"],
        data["labels"],
        data.get("shrink", np.empty(0, np.float32)),
        loss=loss,
        active_rows=active_rows,
    )
