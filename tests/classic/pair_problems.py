"""Small problems on pairs of rows, native and as the lists that the NumPy references read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.classic.datasets import Graph
from mlxhog.classic.generators import faces, grid_edges
from mlxhog.classic.problem import pack_pairs
from mlxhog.optim.gradients import Float32

Pairs = list[tuple[int, int, float]]


def table(pairs):
    """The pairs as the native loop reads them."""
    first, second, values = zip(*pairs, strict=True)
    return pack_pairs(np.array(first, np.int32), np.array(second, np.int32), values)


@dataclass(frozen=True)
class Factors:
    """Random ratings and small random factors."""

    left: Float32
    right: Float32
    ratings: Pairs
    shrink_users: Float32
    shrink_items: Float32

    @classmethod
    def random(cls, n=300, users=20, items=9, *, width=16, seed=0):
        """Every row has a rating about n / users or n / items times; few rows, so they collide."""
        rng = np.random.default_rng(seed)
        ratings = [
            (int(rng.integers(users)), int(rng.integers(items)), float(np.float32(rng.normal())))
            for _ in range(n)
        ]
        return cls(
            0.3 * rng.standard_normal((users, width), dtype=np.float32),
            0.3 * rng.standard_normal((items, width), dtype=np.float32),
            ratings,
            (0.1 * rng.random(users)).astype(np.float32),
            (0.1 * rng.random(items)).astype(np.float32),
        )

    def copies(self):
        """Both factors, to be changed."""
        return self.left.copy(), self.right.copy()

    def problem(self, left, right, **options):
        """The native problem over these factors; items have the lock words behind the users'."""
        return _native.CompletionProblem(
            left,
            right,
            table(self.ratings),
            self.shrink_users,
            self.shrink_items,
            item_word0=len(left),
            **options,
        )


@dataclass(frozen=True)
class Tangle:
    """A random graph whose vertices have random points of the simplex, a few of them terminals."""

    x: Float32
    edges: Pairs
    fixed: NDArray[np.uint8]

    @classmethod
    def random(cls, n=300, vertices=30, *, labels=2, seed=0):
        """Terminals are the first vertices, one per label; two labels are one float."""
        rng = np.random.default_rng(seed)
        edges = []
        for _ in range(n):
            u, v = rng.choice(vertices, 2, replace=False)
            edges.append((int(u), int(v), float(np.float32(rng.random()))))
        x = rng.dirichlet(np.ones(labels), vertices).astype(np.float32)
        x[:labels] = np.eye(labels)
        fixed = np.zeros(vertices, np.uint8)
        fixed[:labels] = 1
        return cls(x[:, 1:].copy() if labels == 2 else x, edges, fixed)

    def problem(self, x, **options):
        """The native problem over x."""
        return _native.CutProblem(x, table(self.edges), self.fixed, **options)


def cut_grid(side=8, *, seed=0):
    """A cube with whole weights 1 .. 10; side 8 and seed 0 have the maximum flow 347.

    The draws are in the order of the recorded reference.
    """
    heads, tails = grid_edges(side)
    weights = np.random.default_rng(seed).integers(1, 11, len(heads))
    return Graph(
        heads=heads,
        tails=tails,
        weights=weights.astype(np.float32),
        n_vertices=side**3,
        terminals=faces(side),
        labels=2,
    )


def clusters(vertices, edges, labels):
    """Vertex v has label v % labels; an edge in ten joins two labels, a vertex in ten is shown."""
    rng = np.random.default_rng(0)
    heads = rng.integers(vertices, size=edges)
    apart = labels * rng.integers(1, vertices // labels - 1, edges) + (rng.random(edges) < 0.1)
    shown = {*range(labels), *rng.choice(vertices, vertices // 10, replace=False).tolist()}
    return Graph(
        heads=heads.astype(np.int32),
        tails=((heads + apart) % (vertices - vertices % labels)).astype(np.int32),
        weights=rng.random(edges, dtype=np.float32),
        n_vertices=vertices,
        terminals={vertex: vertex % labels for vertex in sorted(shown)},
        labels=labels,
    )
