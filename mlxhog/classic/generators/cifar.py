"""Images like CIFAR-10's as a linear model sees them: ten blurred class means under strong noise.

Neighbouring pixels of the noise are as alike as those of photographs (AR(1), .95 along rows and
columns), so that the classes differ least where the noise is weakest, and a linear model is right
about four times in ten (spec hogwild.md 3.4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import DenseRows

SIDE, CHANNELS, CLASSES = 32, 3, 10
LIKENESS = 0.95  # of neighbouring pixels of the noise
BLUR = 5.0  # standard deviation of the low-pass filter on the means, in pixels
NOISE = 0.2  # standard deviation of a pixel of values 0 .. 1, about CIFAR-10's .25
SIGNAL = 0.02  # standard deviation of the class means
_BLOCK = 1_000  # images filtered at once


def cifar_dense(
    n: int = 10_000, n_test: int = 1_000, *, seed: int = 0
) -> tuple[DenseRows, DenseRows | None]:
    """Draw a training and a test set of 3072 pixels in [0, 1], less the training set's means.

    Pixels are ordered as in CIFAR-10's files: channel, row, column.

    Args:
        n: training images, at least 1.
        n_test: test images; with 0 there is no test set.
        seed: equal seeds give equal images.
    """
    rng = np.random.default_rng(seed)
    means = _class_means(rng)
    train, labels = _images(rng, means, n)
    centre = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    train -= centre
    rows = DenseRows(train, labels, "classes", CLASSES)
    if not n_test:
        return rows, None
    test, test_labels = _images(rng, means, n_test)
    test -= centre
    return rows, DenseRows(test, test_labels, "classes", CLASSES)


def _class_means(rng: np.random.Generator) -> NDArray[np.float32]:
    """(classes, channels, side, side): white noise, blurred, of standard deviation 1."""
    apart = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    blur = np.exp(-(apart**2) / (2 * BLUR**2))
    means = blur @ rng.standard_normal((CLASSES, CHANNELS, SIDE, SIDE)) @ blur.T
    means /= means.std(axis=(1, 2, 3), keepdims=True)
    return means.astype(np.float32)


def _images(
    rng: np.random.Generator, means: NDArray[np.float32], n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images (n, 3072) float32 in [0, 1] and their classes, (n,)."""
    labels = rng.integers(0, CLASSES, n)
    images = np.empty((n, CHANNELS, SIDE, SIDE), dtype=np.float32)
    correlate = _ar1()
    for start in range(0, n, _BLOCK):
        block = images[start : start + _BLOCK]
        white = rng.standard_normal(block.shape, dtype=np.float32)
        np.matmul(correlate @ white, correlate.T, out=block)
        block *= NOISE
        block += 0.5 + SIGNAL * means[labels[start : start + _BLOCK]]
        np.clip(block, 0.0, 1.0, out=block)
    return images.reshape(n, -1), labels.astype(np.float32)


def _ar1() -> NDArray[np.float32]:
    """The matrix that makes white noise AR(1) along one axis, with variance 1 everywhere."""
    steps = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    matrix = np.where(steps >= 0, LIKENESS ** np.maximum(steps, 0), 0.0)
    matrix[:, 1:] *= np.sqrt(1 - LIKENESS**2)
    return matrix.astype(np.float32)
