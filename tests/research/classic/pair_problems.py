"""Small problems on pairs of rows, native and as the lists that the NumPy references read."""

from collections import namedtuple

import numpy as np

from mlxhog import _native
from mlxhog.research.classic.generators import faces, grid_edges
from mlxhog.research.classic.problem import Graph, pack_pairs


def table(pairs):
    """The pairs, (first, second, value) each, as the native loop reads them."""
    first, second, values = zip(*pairs, strict=True)
    return pack_pairs(np.array(first, np.int32), np.array(second, np.int32), values)


class Factors(namedtuple("Factors", "left right ratings shrink_users shrink_items")):
    """Random ratings and small random factors."""

    @classmethod
    def random(cls, n=300, users=20, items=9, *, width=16):
        """Every row has a rating about n / users or n / items times; few rows, so they collide."""
        rng = np.random.default_rng(0)
        ratings = [
            (int(rng.integers(users)), int(rng.integers(items)), float(np.float32(rng.normal())))
            for _ in range(n)
        ]
        left, right = (
            0.3 * rng.standard_normal((rows, width), dtype=np.float32) for rows in (users, items)
        )
        shrink = [(0.1 * rng.random(rows)).astype(np.float32) for rows in (users, items)]
        return cls(left, right, ratings, *shrink)

    def problem(self, left, right):
        """The native problem over these factors; items have the lock words behind the users'."""
        shrink = self.shrink_users, self.shrink_items
        return _native.CompletionProblem(
            left, right, table(self.ratings), *shrink, items_word0=len(left)
        )


class Tangle(namedtuple("Tangle", "x edges fixed")):
    """A random graph whose vertices have random points of the simplex, a few of them terminals."""

    @classmethod
    def random(cls, n=300, vertices=30, *, labels=2):
        """Terminals are the first vertices, one per label; two labels are one float."""
        rng = np.random.default_rng(0)
        edges = [
            (*rng.choice(vertices, 2, replace=False).tolist(), float(np.float32(rng.random())))
            for _ in range(n)
        ]
        x = rng.dirichlet(np.ones(labels), vertices).astype(np.float32)
        x[:labels] = np.eye(labels)
        fixed = (np.arange(vertices) < labels).astype(np.uint8)
        return cls(x[:, 1:].copy() if labels == 2 else x, edges, fixed)

    def problem(self, x):
        """The native problem over x."""
        return _native.CutProblem(x, table(self.edges), self.fixed)


def delta_and_rho(first, second, n):
    """Of a hypergraph whose edges are pairs of n rows: too many for `Hypergraph`."""
    degrees = np.bincount(np.concatenate([first, second]), minlength=n)
    pairs = np.minimum(first, second).astype(np.int64) * n + np.maximum(first, second)
    _, which, parallel = np.unique(pairs, return_inverse=True, return_counts=True)
    met = degrees[first] + degrees[second] - parallel[which]
    return degrees.max() / len(first), met.max() / len(first)


def cut_grid(side=8, *, seed=0):
    """A cube with whole weights 1 .. 10; side 8 and seed 0 have the maximum flow 347.

    The draws are in the order of the recorded reference.
    """
    heads, tails = grid_edges(side)
    weights = np.random.default_rng(seed).integers(1, 11, len(heads))
    return Graph(heads, tails, weights.astype(np.float32), side**3, faces(side), labels=2)


def clusters(vertices, edges, labels):
    """Vertex v has label v % labels; an edge in ten joins two labels, a vertex in ten is shown."""
    rng = np.random.default_rng(0)
    heads = rng.integers(vertices, size=edges)
    apart = labels * rng.integers(1, vertices // labels - 1, edges) + (rng.random(edges) < 0.1)
    tails = (heads + apart) % (vertices - vertices % labels)
    shown = {*range(labels), *rng.choice(vertices, vertices // 10, replace=False).tolist()}
    terminals = {vertex: vertex % labels for vertex in sorted(shown)}
    weights = rng.random(edges, dtype=np.float32)
    pairs = heads.astype(np.int32), tails.astype(np.int32)
    return Graph(*pairs, weights, vertices, terminals, labels)
