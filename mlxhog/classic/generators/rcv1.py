"""Text like RCV1's: rows of Zipf-distributed words, weighted as documents are, with two classes.

Law and constants: spec hogwild.md 3.1, fitted to the published set (781,265 rows of 47,236
features, about 75 of them set in a row).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import SparseRows

Q = 16.0  # of p_j ~ 1 / (j + q), j from 1
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
    indptr, indices, counts = _words(rng, n, n_features)
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


def _words(
    rng: np.random.Generator, n: int, n_features: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Where rows begin, their words in rising order, and how often each word is in its row."""
    mu = np.log(MEAN_WORDS) - LENGTH_SIGMA**2 / 2
    words = np.rint(rng.lognormal(mu, LENGTH_SIGMA, n)).clip(1, MOST_WORDS).astype(np.int64)
    law = np.cumsum(1.0 / (np.arange(1, n_features + 1) + Q))
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
