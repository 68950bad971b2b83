"""Multiway cuts in plain NumPy: sequential projected SGD, operation by operation as native."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.problems.simplex_reference import project_onto_simplex

Float32 = NDArray[np.float32]

ROUNDING = 2.0**-22  # of a sum, per entry


def project(row: Float32) -> Float32:
    """A row back to where it may be: the simplex, or [0, 1] where two labels are one scalar."""
    if len(row) == 1:
        return np.clip(row, row.dtype.type(0), row.dtype.type(1))
    return project_onto_simplex(row)


def seen(row: Float32) -> Float32:
    """A row as it is read: projected where it is off the simplex by more than rounding."""
    if len(row) == 1:
        return row
    off = abs(np.cumsum(row)[-1] - row.dtype.type(1))
    return project(row) if off > row.dtype.type(len(row) * ROUNDING) else row


def step(head: Float32, tail: Float32, weight: float, gamma: float) -> tuple[Float32, Float32]:
    """Both ends after one edge, from their old values; (labels,), or (1,) for two labels.

    P(x_u - gamma s) and P(x_v + gamma s) with s = weight sign(x_u - x_v) and sign(0) = 0. Source:
    spec hogwild.md 3.3.
    """
    f = head.dtype.type
    move = f(gamma) * f(weight) * np.sign(head - tail)
    return project(head - move), project(tail + move)


def epoch(
    x: Float32,
    edges: Sequence[tuple[int, int, float]],
    fixed: Sequence[bool],
    gamma: float,
    *,
    batch: int = 1,
) -> None:
    """Take a step for each `batch` edges (head, tail, weight), changing the free rows in place.

    All signs of a step are taken at the same x; its edges then move their ends one after the other.
    """
    f = x.dtype.type
    for start in range(0, len(edges), batch):
        examples = edges[start : start + batch]
        scale = f(gamma) / f(len(examples))
        signs = [np.sign(seen(x[u]) - seen(x[v])) for u, v, _ in examples]
        for (u, v, weight), sign in zip(examples, signs, strict=True):
            move = scale * f(weight) * sign
            if not fixed[u]:
                x[u] = project(x[u] - move)
            if not fixed[v]:
                x[v] = project(x[v] + move)
