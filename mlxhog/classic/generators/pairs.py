"""Ratings and graphs like the published ones: Netflix, Abdomen, DBLife."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import Graph, Ratings

# -- ratings: who rates how much, and how they rate ------------------------------------------------
#
# Films follow a shifted power law, users a log-normal one that is cut off at seven times its mean
# (there are a tenth of the real users; the real cut is at 85 times). Grades are a matrix of low
# rank plus noise, rounded to 1 .. 5. The law is fitted to the prize's published counts (busiest
# film 232,944 of 100.2 million ratings, mean 5,655, median 561).

USERS, ITEMS, DRAWS = 48_019, 17_770, 2_000_000
ITEM_SHIFT, ITEM_POWER = 373 / ITEMS, 1.9
USER_SIGMA, USER_CAP = 1.246, 7.0
MEAN_GRADE, GRADE_SIGNAL, GRADE_NOISE = 3.6, 0.86, 0.5
GRADES = (1.0, 5.0)


def netflix_like(
    draws: int = DRAWS,
    users: int | None = None,
    items: int | None = None,
    rank: int = 10,
    *,
    seed: int = 0,
) -> Ratings:
    """Draw ratings of `items` films by `users` people, each pair at most once.

    Args:
        draws: pairs drawn; those drawn again (5 % of the default size) are kept once.
        users: people; None: 48,019, fewer for fewer draws.
        items: films; None: 17,770, fewer for fewer draws.
        rank: of the matrix behind the grades.
        seed: equal seeds give equal ratings.

    Returns:
        Ratings sorted by user, then by film; grades are whole numbers from 1 to 5.
    """
    smaller = (draws / DRAWS) ** 0.75  # in between: few repeated pairs, and rows not too short
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
    tastes = rng.standard_normal((users, rank), dtype=np.float32)
    traits = rng.standard_normal((items, rank), dtype=np.float32)
    signal = np.einsum("ij,ij->i", tastes[who], traits[what])
    noise = rng.standard_normal(len(pairs))
    grades = MEAN_GRADE + GRADE_SIGNAL * signal / max(signal.std(), 1e-12) + GRADE_NOISE * noise
    return Ratings(
        users=who,
        items=what,
        ratings=np.clip(np.round(grades), *GRADES).astype(np.float32),
        n_users=users,
        n_items=items,
        lowest=GRADES[0],
        highest=GRADES[1],
    )


# -- a noisy volume of two tissues -----------------------------------------------------------------
#
# The published problem segments a CT scan of 512 x 512 x 551 voxels, 6-connected, with two seeded
# labels. This one draws a wavy surface through a cube, bright on one side and dark on the other,
# and joins neighbours by how alike they look.

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
    """Draw a cube of side^3 voxels; its first and last face along axis 0 are the two seeds.

    Weights are exp(-(I_u - I_v)^2 / 2 s^2), in (0, 1].

    Args:
        side: voxels along each axis, at least 3.
        seed: equal seeds give equal volumes.
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


# -- a similarity graph with a few entities that are mentioned everywhere --------------------------

ENTITY_SHIFT = 86.0
LABELLED_SHARE = 0.1  # of the vertices: the entities that are known already
ASTRAY_SHARE = 0.05  # of the edges: similar by accident, to whatever label


def dblife_like(
    vertices: int = 18_167, edges: int = 180_110, labels: int = 8, *, seed: int = 0
) -> Graph:
    """Draw a graph whose ends follow p_j ~ 1/(j + 86).

    Every vertex belongs to a label, and edges join vertices of the same one, but for a few; one
    vertex in ten is a terminal and shows its label. Weights are similarities in (0, 1]. (The
    published graph has a label for each entity.)

    Args:
        vertices: number of vertices, at least two for each label.
        edges: number of edges; a pair may be drawn twice, a vertex is never joined to itself.
        labels: number of labels, at least 2; each has a terminal.
        seed: equal seeds give equal graphs.
    """
    rng = np.random.default_rng(seed)
    law = 1.0 / (np.arange(vertices) + ENTITY_SHIFT)
    law /= law.sum()
    belongs = rng.permutation(np.arange(vertices) % labels)
    heads = rng.choice(vertices, edges, p=law)
    # Labels are blind to how busy a vertex is, so tails follow the same law as heads.
    tails = rng.choice(vertices, edges, p=law)
    together = rng.random(edges) >= ASTRAY_SHARE
    for label in range(labels):
        members = np.flatnonzero(belongs == label)
        joined = np.flatnonzero(together & (belongs[heads] == label))
        tails[joined] = rng.choice(members, len(joined), p=law[members] / law[members].sum())
    while (loops := np.flatnonzero(heads == tails)).size:
        tails[loops] = rng.choice(vertices, loops.size, p=law)
    weights = 1.0 - rng.random(edges, dtype=np.float32)
    shown = rng.random(vertices) < LABELLED_SHARE
    shown[np.unique(belongs, return_index=True)[1]] = True
    return Graph(
        heads=heads.astype(np.int32),
        tails=tails.astype(np.int32),
        weights=weights,
        n_vertices=vertices,
        terminals={int(vertex): int(belongs[vertex]) for vertex in np.flatnonzero(shown)},
        labels=labels,
    )
