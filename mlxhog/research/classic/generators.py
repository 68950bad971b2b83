"""Synthetic data with the statistics of published sets that may not be redistributed.

Ratings like Netflix's, graphs like Abdomen, text like RCV1.
"""

import numpy as np
from numpy.typing import NDArray

from mlxhog.research.classic.problem import Graph, Ratings, SparseRows

# -- ratings ---------------------------------------------------------------------------------------
#
# The number of ratings follows a shifted power law over films and a log-normal law over users. The
# latter is cut off at seven times its mean (here are a tenth of the real users; the real cut is at
# 85 times). Grades are a matrix of low rank plus noise, rounded to 1 .. 5. The laws are fitted to
# the prize's published counts (of 100.2 million ratings the most rated film has 232,944, the mean
# is 5,655 and the median 561).

USERS, ITEMS, DRAWS = 48_019, 17_770, 2_000_000
ITEM_SHIFT, ITEM_POWER = 373 / ITEMS, 1.9
USER_SIGMA, USER_CAP = 1.246, 7.0
MEAN_GRADE, GRADE_SIGNAL, GRADE_NOISE = 3.6, 0.86, 0.5
GRADES = (1.0, 5.0)
GRADE_RANK = 10  # of the matrix behind the grades


def netflix_like(
    draws: int = DRAWS, users: int | None = None, items: int | None = None, *, seed: int = 0
) -> Ratings:
    """Draw ratings of `items` films by `users` people, each pair at most once.

    Args:
        draws: number of drawn pairs; repeated pairs (5 % at the default size) count once.
        users: people; None: 48,019, fewer for fewer draws.
        items: films; None: 17,770, fewer for fewer draws.
        seed: equal seeds give equal ratings.

    Returns:
        Ratings sorted by user, then by film; grades are whole numbers from 1 to 5.
    """
    # A compromise: 0.5 keeps the share of repeated pairs, 1 the number of ratings per user.
    smaller = (draws / DRAWS) ** 0.75
    users = max(2, round(USERS * smaller)) if users is None else users
    items = max(2, round(ITEMS * smaller)) if items is None else items
    rng = np.random.default_rng(seed)
    item_law = (np.arange(items) + ITEM_SHIFT * items) ** -ITEM_POWER
    user_law = np.exp(USER_SIGMA * rng.standard_normal(users))
    user_law = np.minimum(user_law, USER_CAP * user_law.mean())
    drawn_users = rng.choice(users, draws, p=user_law / user_law.sum())
    drawn_items = rng.choice(items, draws, p=item_law / item_law.sum())
    pairs = np.unique(drawn_users.astype(np.int64) * items + drawn_items)
    who, what = (pairs // items).astype(np.int32), (pairs % items).astype(np.int32)
    tastes = rng.standard_normal((users, GRADE_RANK), dtype=np.float32)
    traits = rng.standard_normal((items, GRADE_RANK), dtype=np.float32)
    signal = np.einsum("ij,ij->i", tastes[who], traits[what])
    noise = rng.standard_normal(len(pairs))
    grades = MEAN_GRADE + GRADE_SIGNAL * signal / max(signal.std(), 1e-12) + GRADE_NOISE * noise
    return Ratings(
        users=who,
        items=what,
        ratings=np.clip(np.round(grades), *GRADES).astype(np.float32),
        n_users=users,
        n_items=items,
    )


# -- a noisy volume of two tissues -----------------------------------------------------------------
#
# The published problem segments a CT scan of 512 x 512 x 551 voxels, 6-connected, with seeds of two
# labels. This one draws a wavy surface through a cube, bright on one side and dark on the other.
# The weight of an edge is the similarity of its two voxels.

VOXEL_NOISE = 0.25  # of intensities whose two phases differ by 1
VOXEL_LIKENESS = 0.3  # the s of exp(-(I_u - I_v)^2 / 2 s^2)
SURFACE_WAVES = 3  # of the surface, along each axis


def grid_edges(side: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Heads and tails of the 3 side^2 (side - 1) edges of a cube, along axis 0, then 1, then 2."""
    voxel = np.arange(side**3, dtype=np.int32).reshape(side, side, side)
    heads = [voxel[:-1].ravel(), voxel[:, :-1].ravel(), voxel[:, :, :-1].ravel()]
    tails = [voxel[1:].ravel(), voxel[:, 1:].ravel(), voxel[:, :, 1:].ravel()]
    return np.concatenate(heads), np.concatenate(tails)


def faces(side: int) -> dict[int, int]:
    """Terminals of a cut through a cube: label 1 on its first face of axis 0, 0 on its last."""
    first = range(side**2)
    last = range(side**2 * (side - 1), side**3)
    return dict.fromkeys(first, 1) | dict.fromkeys(last, 0)


def abdomen_like(side: int = 32, *, seed: int = 0) -> Graph:
    """Draw a cube of side^3 voxels; the seeds are its first and last face along axis 0.

    Weights are exp(-(I_u - I_v)^2 / 2 s^2), in (0, 1].
    """
    rng = np.random.default_rng(seed)
    at = np.arange(side) / side
    height = np.full((side, side), 0.5)
    for _ in range(SURFACE_WAVES):
        kx, ky, phase = rng.integers(0, 3), rng.integers(0, 3), rng.random()
        height += 0.08 * np.sin(2 * np.pi * (kx * at[:, None] + ky * at[None, :] + phase))
    bright = at[:, None, None] < height[None]
    intensity = (bright + VOXEL_NOISE * rng.standard_normal(bright.shape)).ravel()
    heads, tails = grid_edges(side)
    apart = intensity[heads] - intensity[tails]
    return Graph(
        heads=heads,
        tails=tails,
        weights=np.exp(-(apart**2) / (2 * VOXEL_LIKENESS**2)).astype(np.float32),
        n_vertices=side**3,
        terminals=faces(side),
        labels=2,
    )


# -- text: rows of Zipf-distributed words, weighted by tf-idf, with two classes --------------------
#
# The law is fitted to the published set (781,265 rows of 47,236 features, about 75 of them in a
# row are not zero).

ZIPF_SHIFT = 16.0  # of p_j ~ 1 / (j + shift), j from 1
FEATURES = 47_236  # possibly some that no row has
LENGTH_SIGMA = 0.62  # of the log-normal number of words in a row
MEAN_WORDS = 74 * 1.13  # words of a row; some of them repeat
MAX_WORDS = 845  # cuts two rows of 100,000, so that the longest has about 677 features
DENSE_SHARE = 0.3  # share of the features that the classes depend on
FLIPPED_SHARE = 0.02  # share of labels with the wrong sign


def rcv1_like(n: int = 100_000, *, seed: int = 0) -> SparseRows:
    """Draw `n` rows of norm 1 with labels -1 and +1, about equally frequent.

    Values are (1 + ln count) ln((1 + n) / (1 + df)), divided by the row's norm. A label is +1 if
    the row's score in a random sparse plane is above the median, else -1; 2 % are flipped.

    Returns:
        Rows in which feature 0 is the most frequent one, so the busiest features share cache lines.
    """
    rng = np.random.default_rng(seed)
    indptr, indices, counts = _draw_words(rng, n)
    n_rows_with = np.bincount(indices, minlength=FEATURES)
    weights = np.log((1.0 + n) / (1.0 + n_rows_with))
    # A feature of every row would have weight 0, and a row with only such features norm 0.
    values = (1.0 + np.log(counts)) * np.maximum(weights, 1e-3)[indices]
    lengths = np.diff(indptr)
    values /= np.repeat(np.sqrt(np.add.reduceat(values**2, indptr[:-1])), lengths)

    plane = np.where(rng.random(FEATURES) < DENSE_SHARE, rng.standard_normal(FEATURES), 0.0)
    scores = np.add.reduceat(values * plane[indices], indptr[:-1])
    flipped = rng.random(n) < FLIPPED_SHARE
    labels = np.where((scores > np.median(scores)) != flipped, np.float32(1), np.float32(-1))

    return SparseRows(
        indptr=indptr,
        indices=indices,
        values=values.astype(np.float32),
        labels=labels,
        n_features=FEATURES,
    )


def _draw_words(
    rng: np.random.Generator, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """The first entry of each row, words in ascending order per row, and their counts."""
    mu = np.log(MEAN_WORDS) - LENGTH_SIGMA**2 / 2
    words = np.rint(rng.lognormal(mu, LENGTH_SIGMA, n)).clip(1, MAX_WORDS).astype(np.int64)
    law = np.cumsum(1.0 / (np.arange(1, FEATURES + 1) + ZIPF_SHIFT))
    drawn = np.searchsorted(law, law[-1] * rng.random(words.sum()), side="right")
    # One number for each pair of row and word, so that one sort orders all rows.
    keys = np.repeat(np.arange(n) * FEATURES, words) + np.minimum(drawn, FEATURES - 1)
    keys.sort()
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(first, len(keys)))
    keys = keys[first]
    indptr = np.searchsorted(keys, np.arange(n + 1) * FEATURES)
    row_starts = np.repeat(np.arange(n) * FEATURES, np.diff(indptr))
    return indptr, (keys - row_starts).astype(np.int32), counts
