"""Examples with labels, like those of the published sets: text, images, two dense problems."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import DenseRows, SparseRows

# -- text: rows of Zipf-distributed words, weighted as documents are, with two classes -------------
#
# The law is fitted to the published set (781,265 rows of 47,236 features, about 75 of them set in a
# row).

ZIPF_SHIFT = 16.0  # of p_j ~ 1 / (j + shift), j from 1
LENGTH_SIGMA = 0.62  # of the log-normal number of words in a row
MEAN_WORDS = 74 * 1.13  # words of a row, of which about 5 % are there already
MOST_WORDS = 845  # cuts two rows of 100,000, so that the longest has about 677 features
DENSE_SHARE = 0.3  # of the features that the classes depend on
FLIPPED_SHARE = 0.02  # of the labels


def rcv1_like(
    n: int = 100_000, n_features: int = 47_236, *, seed: int = 0, shuffle_ids: bool = False
) -> SparseRows:
    """Draw `n` rows of length 1 with labels -1 and +1, about as many of each.

    Values are (1 + ln count) ln((1 + n) / (1 + df)), then divided by the row's norm; labels say on
    which side of its median the score of a random sparse plane is, and 2 % of them are wrong.

    Args:
        n: rows, at least 1.
        n_features: features, at least 2; features that no row has are possible.
        seed: equal seeds give equal rows.
        shuffle_ids: give features random numbers. As drawn, feature 0 is the most frequent one, so
            the busiest features share cache lines; shuffled, each has one for itself.
    """
    rng = np.random.default_rng(seed)
    indptr, indices, counts = _draw_words(rng, n, n_features)
    n_rows_with = np.bincount(indices, minlength=n_features)
    weights = np.log((1.0 + n) / (1.0 + n_rows_with))
    # A feature that every row has would weigh nothing, and a row of only those have no length.
    values = (1.0 + np.log(counts)) * np.maximum(weights, 1e-3)[indices]
    lengths = np.diff(indptr)
    values /= np.repeat(np.sqrt(np.add.reduceat(values**2, indptr[:-1])), lengths)

    plane = np.where(rng.random(n_features) < DENSE_SHARE, rng.standard_normal(n_features), 0.0)
    scores = np.add.reduceat(values * plane[indices], indptr[:-1])
    flipped = rng.random(n) < FLIPPED_SHARE
    labels = np.where((scores > np.median(scores)) != flipped, np.float32(1), np.float32(-1))

    rows = SparseRows(
        indptr=indptr,
        indices=indices,
        values=values.astype(np.float32),
        labels=labels,
        n_features=n_features,
    )
    return rows.renumbered(rng.permutation(n_features).astype(np.int32)) if shuffle_ids else rows


def _draw_words(
    rng: np.random.Generator, n: int, n_features: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Where rows begin, their words in rising order, and how often each word is in its row."""
    mu = np.log(MEAN_WORDS) - LENGTH_SIGMA**2 / 2
    words = np.rint(rng.lognormal(mu, LENGTH_SIGMA, n)).clip(1, MOST_WORDS).astype(np.int64)
    law = np.cumsum(1.0 / (np.arange(1, n_features + 1) + ZIPF_SHIFT))
    drawn = np.searchsorted(law, law[-1] * rng.random(words.sum()), side="right")
    # Rows and their words as one number each, so that one sort does all rows.
    keys = np.repeat(np.arange(n) * n_features, words) + np.minimum(drawn, n_features - 1)
    keys.sort()
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(first, len(keys)))
    keys = keys[first]
    indptr = np.searchsorted(keys, np.arange(n + 1) * n_features)
    row_starts = np.repeat(np.arange(n) * n_features, np.diff(indptr))
    return indptr, (keys - row_starts).astype(np.int32), counts


# -- 100 features, a fifth of them set -------------------------------------------------------------
#
# "Sparsity 0.2" is not sparse in Hogwild's sense: with about 20 of 100 coordinates per row, 98 % of
# all pairs of rows meet.

SVM100_FEATURES = 100
SVM100_DENSITY = 0.2
_ROW_BLOCK = 20_000  # rows drawn at once; the stream of random numbers does not depend on it


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
    train = _draw_masked(rng, n)
    plane = rng.standard_normal(SVM100_FEATURES)
    test = _signed_rows(*_draw_masked(rng, n_test), plane) if n_test else None
    return _signed_rows(*train, plane), test


def _draw_masked(rng: np.random.Generator, n: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
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


def _signed_rows(
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
        n_features=SVM100_FEATURES,
    )


# -- linear regression: tiny, convex, and all of it on one cache line ------------------------------

LINREG_WEIGHTS = (1.0, -2.0, 3.0, -4.0, 5.0)
LINREG_NOISE = 0.1


def linreg5(n: int = 10_000, *, seed: int = 0) -> DenseRows:
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
# Neighbouring pixels of the noise are as alike as those of photographs (AR(1), .95 along rows and
# columns), so that the classes differ least where the noise is weakest, and a linear model is right
# about four times in ten.

SIDE, CHANNELS, CLASSES = 32, 3, 10
PIXEL_LIKENESS = 0.95  # of neighbouring pixels of the noise
BLUR = 5.0  # standard deviation of the low-pass filter on the means, in pixels
PIXEL_NOISE = 0.2  # standard deviation of a pixel of values 0 .. 1, about CIFAR-10's .25
CLASS_SIGNAL = 0.02  # standard deviation of the class means
_IMAGE_BLOCK = 1_000  # images filtered at once


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
    train, labels = _draw_images(rng, means, n)
    centre = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    train -= centre
    rows = DenseRows(train, labels, "classes", CLASSES)
    if not n_test:
        return rows, None
    test, test_labels = _draw_images(rng, means, n_test)
    test -= centre
    return rows, DenseRows(test, test_labels, "classes", CLASSES)


def _class_means(rng: np.random.Generator) -> NDArray[np.float32]:
    """(classes, channels, side, side): white noise, blurred, of standard deviation 1."""
    apart = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    blur = np.exp(-(apart**2) / (2 * BLUR**2))
    means = blur @ rng.standard_normal((CLASSES, CHANNELS, SIDE, SIDE)) @ blur.T
    means /= means.std(axis=(1, 2, 3), keepdims=True)
    return means.astype(np.float32)


def _draw_images(
    rng: np.random.Generator, means: NDArray[np.float32], n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
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


def _ar1() -> NDArray[np.float32]:
    """The matrix that makes white noise AR(1) along one axis, with variance 1 everywhere."""
    steps = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    matrix = np.where(steps >= 0, PIXEL_LIKENESS ** np.maximum(steps, 0), 0.0)
    matrix[:, 1:] *= np.sqrt(1 - PIXEL_LIKENESS**2)
    return matrix.astype(np.float32)
