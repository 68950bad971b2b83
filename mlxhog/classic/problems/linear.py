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
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import DenseRows, SparseRows
from mlxhog.classic.generators import cifar_dense, linreg5, rcv1_like, svm100
from mlxhog.classic.loaders import held_out, load_cifar10, load_svmlight, parse_label_map
from mlxhog.classic.problem import Defaults, Float32, Int32, Int64, Kernel, Problem, ProblemMemory

Float64 = NDArray[np.float64]
Loss = Literal["hinge", "logistic", "squares"]
Rows = TypeVar("Rows", DenseRows, SparseRows)

LANES = 16
"""Floats per lock word of sparse rows: 64 bytes, one cache line of most processors."""
STRIPE = 1024
"""Largest number of floats per lock word of dense rows: a lock costs little beside adding these."""
SPARSE_WRITES = ("hot-cold", "racy", "lossless")
DENSE_WRITES = ("lossless", "racy")
_MEASURED_ROWS = 1_000  # dense rows evaluated at once


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


@dataclass(frozen=True, eq=False)
class _Linear(Generic[Rows]):
    """What models on sparse and on dense rows have in common.

    Attributes:
        name: name of the problem.
        about: description of the data.
        train: training rows.
        test: test rows, with the same number of features.
        loss: loss of a row, or of a row and a class.
        lam: weight of the L2 term.
        defaults: default step sizes and epochs.
    """

    name: str
    about: str
    train: Rows
    test: Rows | None
    loss: Loss
    lam: float
    defaults: Defaults

    @property
    def n_examples(self) -> int:
        """Training rows."""
        return self.train.n_rows

    def weights(self, params: Mapping[str, Float32]) -> Float64:
        """The weights of the features in float64."""
        raise NotImplementedError

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective; mean losses without the L2 term, and errors, of both sets."""
        weights = self.weights(params)
        with np.errstate(over="ignore", invalid="ignore"):
            train = self._measure("train", self.train, weights)
            penalty = self.lam * self._penalized(np.square(weights)).sum()
            test = {} if self.test is None else self._measure("test", self.test, weights)
            objective = self.n_examples * train["train_loss"] + penalty
        return {"objective": float(objective), **train, **test}

    def _penalized(self, squares: Float64) -> Float64:
        return squares

    def _measure(self, which: str, rows: Rows, weights: Float64) -> dict[str, float]:
        raise NotImplementedError

    def _rows_and_shrink(self, weight: Any, *names: str) -> dict[str, NDArray[Any]]:
        """Arrays of the training rows, and 2 lam times the weight of each feature if lam is not 0.

        An absent term saves work in every step.
        """
        arrays = {name: getattr(self.train, name) for name in names}
        if self.lam:
            shrink = 2 * self.lam / np.asarray(weight)
            arrays["shrink"] = np.broadcast_to(shrink, self.train.n_features).astype(np.float32)
        return arrays


@dataclass(frozen=True, eq=False)
class SparseLinear(_Linear[SparseRows]):
    """A sparse linear model with its data; a `Problem`.

    Attributes:
        active_rows: whether the L2 term acts only in rows whose loss has a slope, more strongly.
    """

    active_rows: bool = False

    @property
    def kernel(self) -> Kernel:
        """Builds the native problem in a worker."""
        return partial(
            _build, native=_native.LinearProblem, loss=self.loss, active_rows=self.active_rows
        )

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """One vector x of zeros, in rows of one cache line; values past the last feature stay 0."""
        return {"x": np.zeros((-(-self.train.n_features // LANES), LANES), np.float32)}

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The rows, and the shrink of each feature."""
        degrees = np.maximum(self.train.degrees(), 1)
        return self._rows_and_shrink(degrees, "indptr", "indices", "values", "labels")

    def weights(self, params: Mapping[str, Float32]) -> Float64:
        """X without its padding, (n_features,)."""
        return params["x"].ravel()[: self.train.n_features].astype(np.float64)

    def supports(self) -> tuple[Int64, Int32, int]:
        """The features of each row."""
        return self.train.indptr, self.train.indices, self.train.n_features

    def _penalized(self, squares: Float64) -> Float64:
        return squares[self.train.degrees() > 0]

    def _measure(self, which: str, rows: SparseRows, weights: Float64) -> dict[str, float]:
        scores, labels = rows.scores(weights), rows.labels.astype(np.float64)
        measures = {f"{which}_loss": float(loss_values(self.loss, scores, labels).mean())}
        if rows.label_kind == "signs":
            # a score of 0 counts as +1
            measures[f"{which}_error"] = float(np.mean((scores >= 0) != (labels > 0)))
        return measures


@dataclass(frozen=True, eq=False)
class DenseLinear(_Linear[DenseRows]):
    """A dense linear model with its data; a `Problem`."""

    @property
    def n_models(self) -> int:
        """Number of vectors w: one per class; 1 without classes."""
        return max(self.train.n_classes, 1)

    @property
    def kernel(self) -> Kernel:
        """Builds the native problem in a worker."""
        return partial(
            _build, native=_native.DenseLinearProblem, loss=self.loss, classes=self.n_models
        )

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """Zeros, whole rows for the w of each class; values past the last feature stay 0."""
        width = min(-(-self.train.n_features // LANES) * LANES, STRIPE)
        rows = self.n_models * -(-self.train.n_features // width)
        return {"x": np.zeros((rows, width), np.float32)}

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The rows, and the shrink of each feature."""
        return self._rows_and_shrink(self.train.n_rows, "features", "labels")

    def weights(self, params: Mapping[str, Float32]) -> Float64:
        """The vectors w as (n_models, n_features)."""
        by_model = params["x"].reshape(self.n_models, -1)
        return by_model[:, : self.train.n_features].astype(np.float64)

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
            if rows.n_classes:
                wrong += int((scores.argmax(axis=1) != labels[:, 0]).sum())
                labels = np.where(labels == np.arange(self.n_models), 1.0, -1.0)
            loss += float(loss_values(self.loss, scores, labels).sum())
        measures = {f"{which}_loss": loss / rows.n_rows}
        if rows.n_classes:
            measures[f"{which}_error"] = wrong / rows.n_rows
        return measures


@dataclass(frozen=True, eq=False)
class LinearRegression(DenseLinear):
    """Dense least squares with the distance from its optimum as a measure."""

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The measures of `DenseLinear`, and the largest distance from the optimum."""
        distance = np.abs(self.weights(params)[0] - self.optimum).max()
        return {**super().measures(params), "distance": float(distance)}

    @cached_property
    def optimum(self) -> Float64:
        """The least squares solution, (n_features,), without the L2 term."""
        features, labels = (a.astype(np.float64) for a in (self.train.features, self.train.labels))
        return np.asarray(np.linalg.lstsq(features, labels, rcond=None)[0])


_NO_SHRINK = np.empty(0, np.float32)


def _build(memory: ProblemMemory, native: Any, **options: Any) -> Any:
    arrays: dict[str, Any] = {"shrink": _NO_SHRINK, **memory.data}
    return native(memory.params["x"], **arrays, **options)


# -- the problems by name --------------------------------------------------------------------------

# Sparse text with two classes. Steps and lam are those of the 2011 program: gamma .5, beta .8, ten
# epochs, a fifth of the rows for testing. Its mu of 1 is 2 lam: lam is .5 here.
TEXT_ROWS = 100_000
TEXT_LAM = 0.5
LOSSES: dict[str, Loss] = {"svm": "hinge", "logistic": "logistic", "least-squares": "squares"}
TEXT_STEPS = Defaults(lr=0.5, beta=0.8, epochs=10, writes=SPARSE_WRITES)


def _text(name: str, config: ClassicConfig) -> Problem:
    """An svmlight file, or rows like RCV1's."""
    loss = LOSSES[name]
    if config.data is None:
        rows, source = rcv1_like(config.size or TEXT_ROWS, seed=config.seed), "generated like RCV1"
        order, n_test = np.arange(rows.n_rows), max(1, rows.n_rows // 5)
        train, test = rows.take(order[:-n_test]), rows.take(order[-n_test:])
    else:
        source = config.data
        train, test = _text_from_file(loss, Path(config.data), config)
    about = (
        f"{source}: {train.n_rows:,} training and {test.n_rows:,} test rows, "
        f"{train.n_features:,} features, {len(train.indices):,} non-zero values in training"
    )
    lam = TEXT_LAM if config.lam is None else config.lam
    return SparseLinear(name, about, train, test, loss, lam, TEXT_STEPS, config.active_rows)


def _text_from_file(loss: Loss, path: Path, config: ClassicConfig) -> tuple[SparseRows, SparseRows]:
    train, test = load_svmlight(
        path,
        _test_path(config),
        labels=parse_label_map(config.labels),
        label_kind="numbers" if loss == "squares" else "signs",
    )
    if test is None:
        train, test = held_out(train, config.seed)
    if loss == "squares" and all((np.abs(rows.labels) == 1).all() for rows in (train, test)):
        train, test = (dataclasses.replace(rows, label_kind="signs") for rows in (train, test))
    # hot-cold keeps the first coordinates private, so the most frequent features come first.
    number = np.empty(train.n_features, dtype=np.int32)
    number[np.argsort(-train.degrees(), kind="stable")] = np.arange(train.n_features)
    return train.renumbered(number), test.renumbered(number)


def _test_path(config: ClassicConfig) -> Path | None:
    return None if config.test_data is None else Path(config.test_data)


def _synthetic_svm(name: str, config: ClassicConfig) -> Problem:
    """100 features, mini-batches of two, no L2 term; a thousand test rows with the same plane."""
    train, test = svm100(config.size or 10_000, seed=config.seed)
    about = (
        f"generated: {train.n_rows:,} training and 1,000 test rows, 100 features, 20 % of them "
        "not zero"
    )
    steps = Defaults(lr=0.001, beta=0.99, epochs=200, batch_size=2, writes=("racy", "lossless"))
    return SparseLinear(name, about, train, test, "hinge", config.lam or 0.0, steps)


def _image_svm(name: str, config: ClassicConfig) -> Problem:
    """One-vs-rest on raw pixels of CIFAR-10, or of images like it: any two steps conflict."""
    if config.data is None:
        train, test = cifar_dense(config.size or 10_000, seed=config.seed)
        source = "generated like CIFAR-10"
    else:
        train, test = load_cifar10(Path(config.data), _test_path(config))
        source = config.data
    if test is None:
        train, test = held_out(train, config.seed)
    about = f"{source}: {train.n_rows:,} training and {test.n_rows:,} test images, 32 x 32 x 3"
    steps = Defaults(lr=0.002, beta=0.9, epochs=20, batch_size=2, writes=DENSE_WRITES)
    return DenseLinear(name, about, train, test, "hinge", config.lam or 0.0, steps)


def _linear_regression(name: str, config: ClassicConfig) -> Problem:
    """Five features: all workers write one cache line."""
    train = linreg5(config.size or 10_000, seed=config.seed)
    about = f"generated: {train.n_rows:,} rows of 5 features"
    steps = Defaults(lr=0.01, beta=0.9, epochs=20, writes=DENSE_WRITES)
    return LinearRegression(name, about, train, None, "squares", config.lam or 0.0, steps)


_CREATE: dict[str, Callable[[str, ClassicConfig], Problem]] = {
    **dict.fromkeys(LOSSES, _text),
    "synthetic-svm": _synthetic_svm,
    "image-svm": _image_svm,
    "linear-regression": _linear_regression,
}


def create(name: str, config: ClassicConfig) -> Problem:
    """Read or generate the data of one of these problems.

    Raises:
        DataError: a file is missing or malformed.
        EnvironmentLacks: the model does not fit into memory.
    """
    return _CREATE[name](name, config)
