"""Edges of a 6-connected grid of voxels, and the small grid whose minimum cut is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import Graph


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


def cut_grid(side: int = 8, *, seed: int = 0) -> Graph:
    """The cube with whole weights 1 .. 10; side 8 and seed 0 have the maximum flow 347.

    Draw order of the recorded reference (spec hogwild.md 3.4): edges first, then
    `integers(1, 11)`.
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
