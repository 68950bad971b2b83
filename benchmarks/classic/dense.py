"""Dense and nearly dense problems of document 004: its two SVMs and its linear regression.

Dense: f(W) = sum over rows a and classes c of loss(y_ac, z_a.w_c), where y_ac is +1 for the row's
class and -1 for the others; without classes there is one w, and y_a is the label. Every row touches
every coordinate: Omega is the number of coordinates, rho = Delta = 1.
"""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from mlxhog.research.classic.problem import Defaults, SparseRows, build
from mlxhog.research.classic.problems.linear import LANES, SparseLinear, loss_values

STRIPE = 1024
"""Largest number of floats per lock word: a lock costs little beside adding these."""
WRITES = ("lossless", "racy")
_MEASURED_ROWS = 1_000  # evaluated at once


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Examples that touch every coordinate.

    Attributes:
        features: (rows, n_features) float32, C order.
        labels: (rows,) float32, classes 0 .. n_classes - 1, or regression targets.
        n_classes: 0 for targets.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.float32]
    n_classes: int = 0


@dataclass(frozen=True, eq=False)
class DenseLinear:
    """A dense linear model with its data; a `Problem`."""

    name: str
    about: str
    train: DenseRows
    test: DenseRows | None
    loss: str
    defaults: Defaults

    @property
    def n_examples(self):
        """Training rows."""
        return len(self.train.labels)

    @property
    def n_models(self):
        """Number of vectors w: one per class; 1 without classes."""
        return max(self.train.n_classes, 1)

    @property
    def kernel(self):
        """Builds the native problem in a worker."""
        return partial(build, native="DenseLinearProblem", loss=self.loss, classes=self.n_models)

    def initial(self, seed):
        """Zeros, whole rows for the w of each class; values past the last feature stay 0."""
        n_features = self.train.features.shape[1]
        width = min(-(-n_features // LANES) * LANES, STRIPE)
        return {"x": np.zeros((self.n_models * -(-n_features // width), width), np.float32)}

    def data(self):
        """The rows."""
        return {"features": self.train.features, "labels": self.train.labels}

    def weights(self, params):
        """The vectors w as (n_models, n_features) float64."""
        by_model = params["x"].reshape(self.n_models, -1)
        return by_model[:, : self.train.features.shape[1]].astype(np.float64)

    def supports(self):
        """Every example touches all coordinates; these are rows of x if a row is `STRIPE` wide."""
        rows, width = self.initial(0)["x"].shape
        touched = rows if width == STRIPE else self.train.features.shape[1]
        indices = np.tile(np.arange(touched, dtype=np.int32), self.n_examples)
        return np.arange(self.n_examples + 1, dtype=np.int64) * touched, indices, touched

    def measures(self, params):
        """The objective; mean losses and errors of both sets."""
        weights = self.weights(params)
        with np.errstate(over="ignore", invalid="ignore"):
            train = self._measure("train", self.train, weights)
            test = {} if self.test is None else self._measure("test", self.test, weights)
        return {"objective": self.n_examples * train["train_loss"], **train, **test}

    def _measure(self, which, rows, weights):
        loss, wrong, n = 0.0, 0, len(rows.labels)
        for start in range(0, n, _MEASURED_ROWS):
            scores = rows.features[start : start + _MEASURED_ROWS].astype(np.float64) @ weights.T
            labels = rows.labels[start : start + _MEASURED_ROWS].astype(np.float64)[:, None]
            if rows.n_classes:
                wrong += int((scores.argmax(axis=1) != labels[:, 0]).sum())
                labels = np.where(labels == np.arange(self.n_models), 1.0, -1.0)
            loss += float(loss_values(self.loss, scores, labels).sum())
        measures = {f"{which}_loss": loss / n}
        return {**measures, f"{which}_error": wrong / n} if rows.n_classes else measures


class LinearRegression(DenseLinear):
    """Dense least squares with the distance from its optimum as a measure."""

    def measures(self, params):
        """The measures of `DenseLinear`, and the largest distance from the optimum."""
        distance = np.abs(self.weights(params)[0] - self.optimum).max()
        return {**super().measures(params), "distance": float(distance)}

    @cached_property
    def optimum(self):
        """The least squares solution, (n_features,)."""
        features, labels = (a.astype(np.float64) for a in (self.train.features, self.train.labels))
        return np.linalg.lstsq(features, labels, rcond=None)[0]


def synthetic_svm(size=10_000, *, seed=0):
    """100 features, mini-batches of two; a thousand test rows with the same plane."""
    steps = Defaults(lr=0.001, beta=0.99, epochs=200, batch_size=2, writes=("racy", "lossless"))
    return SparseLinear("synthetic-svm", "", *svm100(size, seed=seed), "hinge", 0.0, steps)


def image_svm(size=10_000, *, seed=0):
    """One against the rest on raw pixels of images like CIFAR-10's: any two steps conflict."""
    steps = Defaults(lr=0.002, beta=0.9, epochs=20, batch_size=2, writes=WRITES)
    return DenseLinear("image-svm", "", *cifar_dense(size, seed=seed), "hinge", steps)


def linear_regression(size=10_000, *, seed=0):
    """Five features: all workers write one cache line."""
    steps = Defaults(lr=0.01, beta=0.9, epochs=20, writes=WRITES)
    return LinearRegression(
        "linear-regression", "", linreg5(size, seed=seed), None, "squares", steps
    )


# -- 100 features, a fifth of them not zero --------------------------------------------------------
#
# "Sparsity 0.2" is not sparse in Hogwild's sense: with about 20 of 100 coordinates per row, 98 % of
# all pairs of rows conflict.

SVM100_FEATURES = 100
SVM100_DENSITY = 0.2
_ROW_BLOCK = 20_000  # rows drawn at once; the random numbers do not depend on it


def svm100(n=10_000, n_test=1_000, *, seed=0):
    """Draw a training and a test set that a plane through the origin separates.

    The order of draws is that of the recorded reference: all masks, all values, the plane. The
    masks and values of the test rows come after them.

    Args:
        n: training rows, at least 1.
        n_test: test rows; with 0 there is no test set.
        seed: equal seeds give equal sets.
    """
    rng = np.random.default_rng(seed)
    train = _draw_masked(rng, n)
    plane = rng.standard_normal(SVM100_FEATURES)
    test = _signed_rows(*_draw_masked(rng, n_test), plane) if n_test else None
    return _signed_rows(*train, plane), test


def _draw_masked(rng, n):
    """The mask (n, 100) and the values where it is set, row by row."""
    mask = np.empty((n, SVM100_FEATURES), dtype=np.bool_)
    for start in range(0, n, _ROW_BLOCK):
        block = mask[start : start + _ROW_BLOCK]
        block[:] = rng.random(block.shape) < SVM100_DENSITY
    values = []
    for start in range(0, n, _ROW_BLOCK):
        block = mask[start : start + _ROW_BLOCK]
        values.append(rng.standard_normal(block.shape)[block])
    return mask, np.concatenate(values)


def _signed_rows(mask, values, plane):
    """Rows labelled by the sign of their product with the plane; 0 counts as positive.

    Rows without features are left out; one row in five thousand million has none.
    """
    mask = mask[mask.any(axis=1)]
    indices = np.nonzero(mask)[1].astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    scores = np.add.reduceat(values * plane[indices], indptr[:-1])
    labels = np.where(scores >= 0, np.float32(1), np.float32(-1))
    return SparseRows(indptr, indices, values.astype(np.float32), labels, SVM100_FEATURES)


# -- linear regression: small, convex, all parameters on one cache line ----------------------------

LINREG_WEIGHTS = (1.0, -2.0, 3.0, -4.0, 5.0)
LINREG_NOISE = 0.1


def linreg5(n=10_000, *, seed=0):
    """Draw rows of N(0, 1) and targets X w + noise, in the recorded reference's order of draws.

    Args:
        n: rows, at least 1.
        seed: equal seeds give equal rows.
    """
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, len(LINREG_WEIGHTS)))
    noise = LINREG_NOISE * rng.standard_normal(n)
    targets = features @ np.array(LINREG_WEIGHTS) + noise
    return DenseRows(features.astype(np.float32), targets.astype(np.float32))


# -- images: ten blurred class means under strong noise --------------------------------------------
#
# Neighbouring pixels of the noise correlate as in photographs (AR(1), .95 along rows and columns).
# So the classes differ least where the noise is weakest, and a linear model has an accuracy of
# about 40 %.

SIDE, CHANNELS, CLASSES = 32, 3, 10
PIXEL_CORRELATION = 0.95  # of neighbouring pixels of the noise
BLUR = 5.0  # standard deviation of the low-pass filter on the means, in pixels
PIXEL_NOISE = 0.2  # standard deviation of a pixel of values 0 .. 1, about CIFAR-10's .25
CLASS_SIGNAL = 0.02  # standard deviation of the class means
_IMAGE_BLOCK = 1_000  # images filtered at once


def cifar_dense(n=10_000, n_test=1_000, *, seed=0):
    """Draw training and test images of 3072 pixels in [0, 1], less the training set's mean.

    Pixels are ordered as in CIFAR-10's files: channel, row, column.

    Args:
        n: training images, at least 1.
        n_test: test images; with 0 there is no test set.
        seed: equal seeds give equal images.
    """
    rng = np.random.default_rng(seed)
    means = _class_means(rng)
    train, labels = _draw_images(rng, means, n)
    centre = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    train -= centre
    rows = DenseRows(train, labels, CLASSES)
    if not n_test:
        return rows, None
    test, test_labels = _draw_images(rng, means, n_test)
    test -= centre
    return rows, DenseRows(test, test_labels, CLASSES)


def _class_means(rng):
    """(classes, channels, side, side): blurred white noise of standard deviation 1."""
    apart = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    blur = np.exp(-(apart**2) / (2 * BLUR**2))
    means = blur @ rng.standard_normal((CLASSES, CHANNELS, SIDE, SIDE)) @ blur.T
    means /= means.std(axis=(1, 2, 3), keepdims=True)
    return means.astype(np.float32)


def _draw_images(rng, means, n):
    """Images (n, 3072) float32 in [0, 1] and their classes, (n,)."""
    labels = rng.integers(0, CLASSES, n)
    images = np.empty((n, CHANNELS, SIDE, SIDE), dtype=np.float32)
    correlate = _ar1()
    for start in range(0, n, _IMAGE_BLOCK):
        block = images[start : start + _IMAGE_BLOCK]
        white = rng.standard_normal(block.shape, dtype=np.float32)
        np.matmul(correlate @ white, correlate.T, out=block)
        block *= PIXEL_NOISE
        block += 0.5 + CLASS_SIGNAL * means[labels[start : start + _IMAGE_BLOCK]]
        np.clip(block, 0.0, 1.0, out=block)
    return images.reshape(n, -1), labels.astype(np.float32)


def _ar1():
    """The matrix that makes white noise AR(1) along one axis, with variance 1 everywhere."""
    steps = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    matrix = np.where(steps >= 0, PIXEL_CORRELATION ** np.maximum(steps, 0), 0.0)
    matrix[:, 1:] *= np.sqrt(1 - PIXEL_CORRELATION**2)
    return matrix.astype(np.float32)
