"""A noisy volume of two tissues, to be cut along the surface between them.

The published problem segments a CT scan of 512 x 512 x 551 voxels, 6-connected, with two seeded
labels. This one draws a wavy surface through a cube, bright on one side and dark on the other, and
joins neighbours by how alike they look.
"""

from __future__ import annotations

import numpy as np

from mlxhog.classic.datasets import Graph
from mlxhog.classic.generators.grid import faces, grid_edges

NOISE = 0.25  # of intensities whose two phases differ by 1
LIKENESS = 0.3  # the s of exp(-(I_u - I_v)^2 / 2 s^2)
WAVES = 3  # of the surface, along each axis


def abdomen_like(side: int = 32, *, seed: int = 0) -> Graph:
    """Draw a cube of side^3 voxels; its first and last face along axis 0 are the two seeds.

    Weights are exp(-(I_u - I_v)^2 / 2 s^2), in (0, 1] (spec hogwild.md 3.3).

    Args:
        side: voxels along each axis, at least 3.
        seed: equal seeds give equal volumes.
    """
    rng = np.random.default_rng(seed)
    at = np.arange(side) / side
    height = np.full((side, side), 0.5)
    for _ in range(WAVES):
        kx, ky, phase = rng.integers(0, 3), rng.integers(0, 3), rng.random()
        height += 0.08 * np.sin(2 * np.pi * (kx * at[:, None] + ky * at[None, :] + phase))
    bright = at[:, None, None] < height[None]
    intensity = (bright + NOISE * rng.standard_normal(bright.shape)).ravel()
    heads, tails = grid_edges(side)
    apart = intensity[heads] - intensity[tails]
    return Graph(
        heads=heads,
        tails=tails,
        weights=np.exp(-(apart**2) / (2 * LIKENESS**2)).astype(np.float32),
        n_vertices=side**3,
        terminals=faces(side),
        labels=2,
    )
