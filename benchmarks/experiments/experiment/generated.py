"""Generated data of classic problems that only experiments use."""

import numpy as np

from mlxhog.classic.datasets import Graph, SparseRows

# -- a similarity graph in which a few entities have many edges ------------------------------------

ENTITY_SHIFT = 86.0
LABELLED_SHARE = 0.1  # share of vertices that are terminals
ASTRAY_SHARE = 0.05  # share of edges whose tail is drawn without regard to its label


def dblife_like(vertices=18_167, edges=180_110, labels=8, *, seed=0):
    """Draw a graph whose ends follow p_j ~ 1/(j + 86).

    Every vertex has a label, and most edges join vertices of the same label; one vertex in ten is a
    terminal. Weights are similarities in (0, 1]. (The published graph has a label for each entity.)

    Args:
        vertices: number of vertices, at least two for each label.
        edges: number of edges; a pair may occur twice, but no vertex is joined to itself.
        labels: number of labels, at least 2; each has a terminal.
        seed: equal seeds give equal graphs.
    """
    rng = np.random.default_rng(seed)
    law = 1.0 / (np.arange(vertices) + ENTITY_SHIFT)
    law /= law.sum()
    label_of = rng.permutation(np.arange(vertices) % labels)
    heads = rng.choice(vertices, edges, p=law)
    # Labels do not depend on a vertex's number of edges, so tails follow the same law as heads.
    tails = rng.choice(vertices, edges, p=law)
    same_label = rng.random(edges) >= ASTRAY_SHARE
    for label in range(labels):
        members = np.flatnonzero(label_of == label)
        joined = np.flatnonzero(same_label & (label_of[heads] == label))
        tails[joined] = rng.choice(members, len(joined), p=law[members] / law[members].sum())
    while (loops := np.flatnonzero(heads == tails)).size:
        tails[loops] = rng.choice(vertices, loops.size, p=law)
    weights = 1.0 - rng.random(edges, dtype=np.float32)
    is_terminal = rng.random(vertices) < LABELLED_SHARE
    is_terminal[np.unique(label_of, return_index=True)[1]] = True
    return Graph(
        heads=heads.astype(np.int32),
        tails=tails.astype(np.int32),
        weights=weights,
        n_vertices=vertices,
        terminals={int(vertex): int(label_of[vertex]) for vertex in np.flatnonzero(is_terminal)},
        labels=labels,
    )


# -- rows of one density ---------------------------------------------------------------------------


def sparse_regression(n, n_features, density, *, noise=0.1, seed=0):
    """Draw a linear regression whose rows all have the same number of non-zero features.

    Rows have norm 1 and uniformly drawn features; labels are the product with a dense plane of
    normal weights, plus normal noise. So two densities differ in how often two rows conflict.

    Args:
        n: number of training rows.
        n_features: number of features.
        density: share of non-zero features in a row, in (0, 1]; each row has at least one.
        noise: standard deviation of the noise; the labels without noise have 1.
        seed: equal seeds give equal rows.

    Returns:
        Training rows, and a quarter as many test rows.
    """
    rng = np.random.default_rng(seed)
    each = max(1, round(density * n_features))
    plane = rng.standard_normal(n_features)

    def draw(count):
        rows = [rng.choice(n_features, each, replace=False, shuffle=False) for _ in range(count)]
        indices = np.sort(np.stack(rows), axis=1)
        values = rng.standard_normal((count, each))
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        scores = np.einsum("rk,rk->r", values, plane[indices])
        return SparseRows(
            indptr=np.arange(0, count * each + 1, each, dtype=np.int64),
            indices=indices.astype(np.int32).ravel(),
            values=values.astype(np.float32).ravel(),
            labels=(scores + noise * rng.standard_normal(count)).astype(np.float32),
            n_features=n_features,
            label_kind="numbers",
        )

    return draw(n), draw(max(1, n // 4))
