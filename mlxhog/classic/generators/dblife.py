"""A similarity graph with the degrees of DBLife's: few entities that are mentioned everywhere."""

from __future__ import annotations

import numpy as np

from mlxhog.classic.datasets import Graph

ENTITY_SHIFT = 86.0
LABELLED_SHARE = 0.1  # of the vertices: the entities that are known already
ASTRAY_SHARE = 0.05  # of the edges: similar by accident, to whatever label


def dblife_like(
    vertices: int = 18_167, edges: int = 180_110, labels: int = 8, *, seed: int = 0
) -> Graph:
    """Draw a graph whose ends follow p_j ~ 1/(j + 86) (spec hogwild.md 3.3).

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
