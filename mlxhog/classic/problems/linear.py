"""The linear problems: models on sparse and on dense rows, their data and step sizes.

Sparse: f(x) = sum over rows a of [ loss(y_a, z_a.x) + lam sum over u in a of x_u^2 / d_u ], where
d_u is the number of rows that have feature u. So over an epoch each coordinate gets the gradient of
lam x_u^2 once, spread over the steps that touch it. Source: Niu et al. 2011, Hogwild!,
arXiv:1106.5730, section 3.

Dense: f(W) = sum over rows a and classes c of [ loss(y_ac, z_a.w_c) + lam |w_c|^2 / |E| ], where
y_ac is +1 for the row's class and -1 for the others; without classes there is one w, and y_a is the
label. Every row touches every coordinate: Omega is the number of coordinates, rho = Delta = 1.

The losses here are for evaluation, in float64; training uses those in metal/native/classic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import DenseRows, SparseRows
from mlxhog.classic.generators import cifar_dense, linreg5, rcv1_like, svm100
from mlxhog.classic.loaders.rows import held_out, load_cifar10, load_svmlight, parse_label_map
from mlxhog.classic.problem import (
    Defaults,
    Float32,
    Int32,
    Int64,
    Kernel,
    Problem,
    ProblemMemory,
)

Float64 = NDArray[np.float64]
Loss = Literal["hinge", "logistic", "squares"]


def loss_values(loss: Loss, scores: Float64, labels: Float64) -> Float64:
    """The loss of each score; a score is the product of a row with x.

    Args:
        loss: "hinge" max(1 - y s, 0), "logistic" ln(1 + exp(-y s)) or "squares" (s - y)^2 / 2.
        scores: any shape.
        labels: same shape; -1 or +1, except for "squares".
    """
    if loss == "hinge":
        return np.maximum(1.0 - labels * scores, 0.0)
    if loss == "logistic":
        return np.logaddexp(0.0, -labels * scores)
    return 0.5 * np.square(scores - labels)


# -- sparse rows -----------------------------------------------------------------------------------

LANES = 16
"""Floats per lock word: 64 bytes, one cache line of most processors."""

SPARSE_WRITES = ("hot-cold", "racy", "lossless")


@dataclass(frozen=True, eq=False)
class SparseLinear:
    """A sparse linear model with its data; a `Problem`.

    Attributes:
        name: name of the problem.
        about: description of the data.
        train: training rows.
        test: test rows, with the same number of features.
        loss: loss of a row.
        lam: weight of the L2 term.
        defaults: default step sizes and epochs.
        active_rows: whether the L2 term acts only in rows whose loss has a slope, more strongly.
        labels: the map of the file's labels, as `--labels` gives it; or None.
    """

    name: str
    about: str
    train: SparseRows
    test: SparseRows | None
    loss: Loss
    lam: float
    defaults: Defaults
    active_rows: bool = False
    labels: str | None = None

    @property
    def n_examples(self) -> int:
        """Training rows."""
        return self.train.n_rows

    @property
    def kernel(self) -> Kernel:
        """Builds the native problem in a worker."""
        return partial(_build_sparse, loss=self.loss, active_rows=self.active_rows)

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """One vector x of zeros, in rows of one cache line; values past the last feature stay 0."""
        return {"x": np.zeros((-(-self.train.n_features // LANES), LANES), np.float32)}

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The rows, and 2 lam / d_u of each feature if lam is not 0."""
        rows = self.train
        arrays: dict[str, NDArray[Any]] = {
            "indptr": rows.indptr,
            "indices": rows.indices,
            "values": rows.values,
            "labels": rows.labels,
        }
        if self.lam:
            shrink = 2 * self.lam / np.maximum(rows.degrees(), 1)
            arrays["shrink"] = shrink.astype(np.float32)
        return arrays

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective f(x); mean losses without the L2 term, and errors, of both sets."""
        x = params["x"].ravel()[: self.train.n_features].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(x)[self.train.degrees() > 0].sum()
            train = self._measure("train", self.train, x)
            objective = self.train.n_rows * train["train_loss"] + self.lam * squares
            test = {} if self.test is None else self._measure("test", self.test, x)
        return {"objective": float(objective), **train, **test}

    def supports(self) -> tuple[Int64, Int32, int]:
        """The features of each row."""
        return self.train.indptr, self.train.indices, self.train.n_features

    def _measure(self, which: str, rows: SparseRows, x: Float64) -> dict[str, float]:
        scores, labels = rows.scores(x), rows.labels.astype(np.float64)
        measures = {f"{which}_loss": float(loss_values(self.loss, scores, labels).mean())}
        if rows.label_kind == "signs":
            # a score of 0 counts as +1
            measures[f"{which}_error"] = float(np.mean((scores >= 0) != (labels > 0)))
        return measures


def _build_sparse(memory: ProblemMemory, *, loss: Loss, active_rows: bool) -> _native.LinearProblem:
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


# -- dense rows ------------------------------------------------------------------------------------

STRIPE = 1024
"""Largest number of floats per lock word: 4 KiB; a lock costs little compared to adding these."""

_MEASURED_ROWS = 1_000  # rows evaluated at once


@dataclass(frozen=True, eq=False)
class DenseLinear:
    """A dense linear model with its data; a `Problem`.

    Attributes:
        name: name of the problem.
        about: description of the data.
        train: training rows.
        test: test rows, with the same number of features.
        loss: loss of a row and a class.
        lam: weight of the L2 term.
        defaults: default step sizes and epochs.
    """

    name: str
    about: str
    train: DenseRows
    test: DenseRows | None
    loss: Loss
    lam: float
    defaults: Defaults

    @property
    def n_examples(self) -> int:
        """Training rows."""
        return self.train.n_rows

    @property
    def n_models(self) -> int:
        """Number of vectors w: one per class; 1 without classes."""
        return self.train.n_classes if self.train.label_kind == "classes" else 1

    @property
    def kernel(self) -> Kernel:
        """Builds the native problem in a worker."""
        return partial(_build_dense, loss=self.loss, classes=self.n_models)

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """Zeros, whole rows for the w of each class; values past the last feature stay 0."""
        width = min(-(-self.train.n_features // LANES) * LANES, STRIPE)
        rows = self.n_models * -(-self.train.n_features // width)
        return {"x": np.zeros((rows, width), np.float32)}

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The rows, and 2 lam / |E| of each feature if lam is not 0."""
        arrays = {"features": self.train.features, "labels": self.train.labels}
        if self.lam:
            share = 2 * self.lam / self.train.n_rows
            arrays["shrink"] = np.full(self.train.n_features, share, np.float32)
        return arrays

    def weights(self, params: Mapping[str, Float32]) -> Float64:
        """The vectors w as (n_models, n_features) float64."""
        by_model = params["x"].reshape(self.n_models, -1)
        return by_model[:, : self.train.n_features].astype(np.float64)

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective f(W); mean losses without the L2 term, and errors, of both sets."""
        weights = self.weights(params)
        with np.errstate(over="ignore", invalid="ignore"):
            train = self._measure("train", self.train, weights)
            objective = self.n_examples * train["train_loss"] + self.lam * np.square(weights).sum()
            test = {} if self.test is None else self._measure("test", self.test, weights)
        return {"objective": float(objective), **train, **test}

    def supports(self) -> tuple[Int64, Int32, int]:
        """Every example touches all coordinates; these are rows of x if a row is `STRIPE` wide."""
        rows, width = self.initial(0)["x"].shape
        n, touched = self.train.n_rows, rows if width == STRIPE else self.train.n_features
        indices = np.tile(np.arange(touched, dtype=np.int32), n)
        return np.arange(n + 1, dtype=np.int64) * touched, indices, touched

    def _measure(self, which: str, rows: DenseRows, weights: Float64) -> dict[str, float]:
        loss, wrong = 0.0, 0
        for start in range(0, rows.n_rows, _MEASURED_ROWS):
            scores = rows.features[start : start + _MEASURED_ROWS].astype(np.float64) @ weights.T
            labels = rows.labels[start : start + _MEASURED_ROWS].astype(np.float64)[:, None]
            if rows.label_kind == "classes":
                wrong += int((scores.argmax(axis=1) != labels[:, 0]).sum())
                labels = np.where(labels == np.arange(self.n_models), 1.0, -1.0)
            loss += float(loss_values(self.loss, scores, labels).sum())
        measures = {f"{which}_loss": loss / rows.n_rows}
        if rows.label_kind == "classes":
            measures[f"{which}_error"] = wrong / rows.n_rows
        return measures


def _build_dense(memory: ProblemMemory, *, loss: Loss, classes: int) -> _native.DenseLinearProblem:
    data = memory.data
    return _native.DenseLinearProblem(
        memory.params["x"],
        data["features"],
        data["labels"],
        data.get("shrink", np.empty(0, np.float32)),
        loss=loss,
        classes=classes,
    )


# -- sparse text with two classes: support vector machine, logistic regression, least squares ------
#
# Steps and lam are those of the 2011 program: gamma .5, beta .8, ten epochs, a fifth of the rows
# for testing. Its mu of 1 is 2 lam: lam is .5 here.

TEXT_ROWS = 100_000
TEXT_LAM = 0.5
LOSSES: dict[str, Loss] = {"svm": "hinge", "logistic": "logistic", "least-squares": "squares"}
TEXT_STEPS = Defaults(lr=0.5, beta=0.8, epochs=10, writes=SPARSE_WRITES)


def _sparse_text(name: str, config: ClassicConfig) -> Problem:
    """Read the svmlight file of `config.data`, or generate rows like RCV1's.

    Raises:
        ConfigError: an option is for files and there is none, or for generated data with a file.
        DataError: a file is missing or malformed.
        EnvironmentLacks: the model with all features of the file does not fit into memory.
    """
    loss = LOSSES[name]
    train, test, source = _text_from_file(loss, config) if config.data else _generated_text(config)
    about = (
        f"{source}: {train.n_rows:,} training and {test.n_rows:,} test rows, "
        f"{train.n_features:,} features, {len(train.indices):,} non-zero values in training"
    )
    return SparseLinear(
        name=name,
        about=about,
        train=train,
        test=test,
        loss=loss,
        lam=TEXT_LAM if config.lam is None else config.lam,
        defaults=TEXT_STEPS,
        active_rows=config.active_rows,
        labels=config.labels,
    )


def _generated_text(config: ClassicConfig) -> tuple[SparseRows, SparseRows, str]:
    rows = rcv1_like(config.size or TEXT_ROWS, seed=config.seed)
    n_test = max(1, rows.n_rows // 5)
    order = np.arange(rows.n_rows)
    return rows.take(order[:-n_test]), rows.take(order[-n_test:]), "generated like RCV1"


def _text_from_file(loss: Loss, config: ClassicConfig) -> tuple[SparseRows, SparseRows, str]:
    train, test = load_svmlight(
        Path(str(config.data)),
        None if config.test_data is None else Path(config.test_data),
        labels=parse_label_map(config.labels),
        label_kind="numbers" if loss == "squares" else "signs",
    )
    if test is None:
        train, test = held_out(train, config.seed)
    if loss == "squares" and all((np.abs(rows.labels) == 1).all() for rows in (train, test)):
        train, test = (dataclasses.replace(rows, label_kind="signs") for rows in (train, test))
    # hot-cold keeps the first coordinates private, so the most frequent features come first.
    number = train.numbers_by_degree()
    return train.renumbered(number), test.renumbered(number), str(config.data)


# -- a synthetic support vector machine: 100 features, mini-batches of two, no L2 term -------------

SYNTHETIC_ROWS = 10_000
SYNTHETIC_STEPS = Defaults(
    lr=0.001, beta=0.99, epochs=200, batch_size=2, writes=("racy", "lossless")
)


def _synthetic_svm(name: str, config: ClassicConfig) -> Problem:
    """Draw the training rows, and a thousand test rows with the same plane.

    Raises:
        ConfigError: --data names a file.
    """
    train, test = svm100(config.size or SYNTHETIC_ROWS, seed=config.seed)
    return SparseLinear(
        name=name,
        about=(
            f"generated: {train.n_rows:,} training and 1,000 test rows, 100 features, 20 % of them "
            "not zero"
        ),
        train=train,
        test=test,
        loss="hinge",
        lam=config.lam or 0.0,
        defaults=SYNTHETIC_STEPS,
    )


# -- one-vs-rest support vector machines on raw pixels: any two steps conflict ---------------------

IMAGE_ROWS = 10_000
IMAGE_STEPS = Defaults(lr=0.002, beta=0.9, epochs=20, batch_size=2, writes=("lossless", "racy"))


def _image_svm(name: str, config: ClassicConfig) -> Problem:
    """Read CIFAR-10's binary files, or generate images like them.

    Raises:
        ConfigError: an option is for files and there is none, or for generated data with a file.
        DataError: a file is missing or malformed.
    """
    if config.data is None:
        train, test = cifar_dense(config.size or IMAGE_ROWS, seed=config.seed)
        source = "generated like CIFAR-10"
    else:
        test_path = None if config.test_data is None else Path(config.test_data)
        train, test = load_cifar10(Path(config.data), test_path)
        source = config.data
    if test is None:
        train, test = held_out(train, config.seed)
    return DenseLinear(
        name=name,
        about=f"{source}: {train.n_rows:,} training and {test.n_rows:,} test images, 32 x 32 x 3",
        train=train,
        test=test,
        loss="hinge",
        lam=config.lam or 0.0,
        defaults=IMAGE_STEPS,
    )


# -- linear regression on five features: all workers write one cache line --------------------------

REGRESSION_ROWS = 10_000
REGRESSION_STEPS = Defaults(lr=0.01, beta=0.9, epochs=20, writes=("lossless", "racy"))


@dataclass(frozen=True, eq=False)
class LinearRegression(DenseLinear):
    """Dense least squares with the distance from its optimum as a measure."""

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The measures of `DenseLinear`, and the largest distance from the optimum."""
        distance = np.abs(self.weights(params)[0] - self.optimum).max()
        return {**super().measures(params), "distance": float(distance)}

    @cached_property
    def optimum(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The least squares solution, (n_features,) float64, without the L2 term."""
        features = self.train.features.astype(np.float64)
        solution = np.linalg.lstsq(features, self.train.labels.astype(np.float64), rcond=None)
        return np.asarray(solution[0])


def _linear_regression(name: str, config: ClassicConfig) -> Problem:
    """Draw the rows.

    Raises:
        ConfigError: --data names a file.
    """
    train = linreg5(config.size or REGRESSION_ROWS, seed=config.seed)
    return LinearRegression(
        name=name,
        about=f"generated: {train.n_rows:,} rows of 5 features",
        train=train,
        test=None,
        loss="squares",
        lam=config.lam or 0.0,
        defaults=REGRESSION_STEPS,
    )


_CREATE: dict[str, Callable[[str, ClassicConfig], Problem]] = {
    "svm": _sparse_text,
    "logistic": _sparse_text,
    "least-squares": _sparse_text,
    "synthetic-svm": _synthetic_svm,
    "image-svm": _image_svm,
    "linear-regression": _linear_regression,
}


def create(name: str, config: ClassicConfig) -> Problem:
    """Read or generate the data of one of these problems.

    Raises:
        ConfigError: an option contradicts the problem or another option.
        DataError: a file is missing or malformed.
        EnvironmentLacks: the model does not fit into memory.
    """
    return _CREATE[name](name, config)
