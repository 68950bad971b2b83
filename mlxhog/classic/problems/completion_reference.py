"""Matrix completion in plain NumPy: sequential SGD, operation by operation as the native loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

LANES = 16


def dot(a: Float32, b: Float32) -> np.float32:
    """The product of two rows, a multiple of 16 floats wide, in the order of a SIMD loop.

    Sixteen partial sums, which are then halved: 16 -> 8 -> 4 -> 2 -> 1.
    """
    products = (a * b).reshape(-1, LANES)
    sums = products[0].copy()
    for group in products[1:]:
        sums += group
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    return np.float32(sums[0])


def changes(
    left: Float32, right: Float32, rating: float, shrink_l: float, shrink_r: float, gamma: float
) -> tuple[Float32, Float32]:
    """What one example subtracts from both rows, from their old values.

    gamma (2 e R_v + shrink_u L_u) and the same with the roles exchanged, where e = L_u . R_v - Z
    and shrink_u = mu / d_u. Source: spec hogwild.md 3.2.
    """
    f32 = np.float32
    pull = f32(2) * f32(gamma) * (dot(left, right) - f32(rating))
    change_l = pull * right + f32(gamma) * f32(shrink_l) * left
    change_r = pull * left + f32(gamma) * f32(shrink_r) * right
    return change_l, change_r


def within_norm(row: Float32, longest: float) -> Float32:
    """The row, scaled down to length `longest` where it is longer; 0 allows any length."""
    squared = dot(row, row)
    if longest == 0 or not squared > np.float32(longest) * np.float32(longest):
        return row
    shorter: Float32 = row * (np.float32(longest) / np.sqrt(squared))
    return shorter


def epoch(
    left: Float32,
    right: Float32,
    ratings: Sequence[tuple[int, int, float]],
    shrink_users: Float32,
    shrink_items: Float32,
    gamma: float,
    *,
    batch: int = 1,
    longest: float = 0.0,
) -> None:
    """Take a step for each `batch` ratings (user, item, value), changing both factors in place.

    All gradients of a step are taken at the same values, and their mean is subtracted.
    """
    for start in range(0, len(ratings), batch):
        examples = ratings[start : start + batch]
        step = np.float32(gamma) / np.float32(len(examples))
        found = [
            changes(left[u], right[v], value, shrink_users[u], shrink_items[v], float(step))
            for u, v, value in examples
        ]
        for (u, v, _), (change_l, change_r) in zip(examples, found, strict=True):
            left[u] = within_norm(left[u] - change_l, longest)
            right[v] = within_norm(right[v] - change_r, longest)
