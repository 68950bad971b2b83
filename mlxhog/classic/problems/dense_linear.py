"""Linear models on dense rows: what image-svm and linear-regression share.

f(W) = sum over rows a and classes c of [ loss(y_ac, z_a.w_c) + lam |w_c|^2 / |E| ], where y_ac is
+1 for the row's own class and -1 for the others; without classes there is one w, y_a is the label.
Every row touches every coordinate: Omega is their number, rho = Delta = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.classic.datasets import DenseRows
from mlxhog.classic.problem import Block, Defaults, Float32, Int32, Int64, Kernel, Memory
from mlxhog.classic.problems import losses

LANES = 16
STRIPE = 1024
"""Floats behind one lock word at most: 4 KiB, where a lock costs nothing beside the addition."""

_BLOCK = 1_000  # rows measured at once


@dataclass(frozen=True, eq=False)
class DenseLinear:
    """A dense linear model with its data; a `Problem`.

    Attributes:
        name: of the problem.
        about: what the data are.
        train: rows to learn from.
        test: rows to be measured on, with as many features.
        loss: of a row and a class.
        lam: weight of the squares.
        defaults: steps and epochs.
    """

    name: str
    about: str
    train: DenseRows
    test: DenseRows | None
    loss: losses.Loss
    lam: float
    defaults: Defaults

    @property
    def n_examples(self) -> int:
        """Training rows."""
        return self.train.n_rows

    @property
    def n_models(self) -> int:
        """Vectors w: one per class, or one."""
        return self.train.n_classes if self.train.label_kind == "classes" else 1

    @property
    def kernel(self) -> Kernel:
        """Builds the native problem in a worker."""
        return partial(_build, loss=self.loss, classes=self.n_models)

    def params(self) -> Mapping[str, Block]:
        """Per class some whole rows that hold its w; what is past the last feature stays 0."""
        width = min(-(-self.train.n_features // LANES) * LANES, STRIPE)
        return {"x": Block((self.n_models * -(-self.train.n_features // width), width))}

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """Zeros: the objective is convex."""
        return {"x": np.zeros(self.params()["x"].shape, np.float32)}

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The rows as they are, and 2 lam / |E| of each feature if there is anything to shrink."""
        found = {"features": self.train.features, "labels": self.train.labels}
        if self.lam:
            share = 2 * self.lam / self.train.n_rows
            found["shrink"] = np.full(self.train.n_features, share, np.float32)
        return found

    def weights(self, params: Mapping[str, Float32]) -> losses.Float64:
        """The model as (models, n_features) float64."""
        by_model = params["x"].reshape(self.n_models, -1)
        return by_model[:, : self.train.n_features].astype(np.float64)

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective f(W); mean losses without the squares, and errors, of both sets."""
        weights = self.weights(params)
        with np.errstate(over="ignore", invalid="ignore"):
            found = self._of("train", self.train, weights)
            objective = self.n_examples * found["train_loss"] + self.lam * np.square(weights).sum()
            test = {} if self.test is None else self._of("test", self.test, weights)
        return {"objective": float(objective), **found, **test}

    def supports(self) -> tuple[Int64, Int32, int]:
        """Everything in each row: all coordinates, or where they fill whole rows of x, those."""
        rows, width = self.params()["x"].shape
        n, touched = self.train.n_rows, rows if width == STRIPE else self.train.n_features
        indices = np.tile(np.arange(touched, dtype=np.int32), n)
        return np.arange(n + 1, dtype=np.int64) * touched, indices, touched

    def _of(self, which: str, rows: DenseRows, weights: losses.Float64) -> dict[str, float]:
        loss, wrong = 0.0, 0
        for start in range(0, rows.n_rows, _BLOCK):
            scores = rows.features[start : start + _BLOCK].astype(np.float64) @ weights.T
            labels = rows.labels[start : start + _BLOCK].astype(np.float64)[:, None]
            if rows.label_kind == "classes":
                wrong += int((scores.argmax(axis=1) != labels[:, 0]).sum())
                labels = np.where(labels == np.arange(self.n_models), 1.0, -1.0)
            loss += float(losses.values(self.loss, scores, labels).sum())
        found = {f"{which}_loss": loss / rows.n_rows}
        if rows.label_kind == "classes":
            found[f"{which}_error"] = wrong / rows.n_rows
        return found


def _build(memory: Memory, *, loss: losses.Loss, classes: int) -> _native.DenseLinearProblem:
    data = memory.data
    return _native.DenseLinearProblem(
        memory.params["x"],
        data["features"],
        data["labels"],
        data.get("shrink", np.empty(0, np.float32)),
        loss=loss,
        classes=classes,
    )
