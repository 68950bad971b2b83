"""A similarity graph with the degrees of DBLife's: few entities that are mentioned everywhere."""

from __future__ import annotations

import numpy as np

from mlxhog.classic.datasets import Graph

ENTITY_SHIFT = 86.0


def dblife_like(
    vertices: int = 18_167, edges: int = 180_110, labels: int = 8, *, seed: int = 0
) -> Graph:
    """Draw a graph whose ends follow p_j ~ 1/(j + 86) (spec hogwild.md 3.3).

    Weights are similarities in (0, 1]. The published problem has one terminal per entity; here
    `labels` of the hundred busiest vertices are terminals, one per label.

    Args:
        vertices: number of vertices.
        edges: number of edges; a pair may be drawn twice, a vertex is never joined to itself.
        labels: number of terminals, at least 2 and at most 100.
        seed: equal seeds give equal graphs.
    """
    rng = np.random.default_rng(seed)
    law = 1.0 / (np.arange(vertices) + ENTITY_SHIFT)
    law /= law.sum()
    heads = rng.choice(vertices, edges, p=law)
    tails = rng.choice(vertices, edges, p=law)
    while (loops := np.flatnonzero(heads == tails)).size:
        tails[loops] = rng.choice(vertices, loops.size, p=law)
    weights = 1.0 - rng.random(edges, dtype=np.float32)
    busiest = rng.choice(min(100, vertices), labels, replace=False)
    return Graph(
        heads=heads.astype(np.int32),
        tails=tails.astype(np.int32),
        weights=weights,
        n_vertices=vertices,
        terminals={int(vertex): label for label, vertex in enumerate(busiest)},
        labels=labels,
    )
