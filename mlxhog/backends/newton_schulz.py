"""Muon's orthogonalization by Newton-Schulz steps on a backend's device, for both frameworks.

The steps are those of `mlxhog.optim.muon`, in float32, with matrices of one shape as one array
(b, r, c). Symmetric products are computed whole: half of a triangle saves less on a GPU than large
matmuls gain.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.optim.gradients import Float32, global_norm
from mlxhog.optim.muon import MIN_NORM, ROOM
from mlxhog.optim.rule import Coefficients


def orthogonalize(
    xs: Sequence[Float32], scales: Sequence[float], coefficients: Coefficients, *, xp: Arrays,
    from_host: Callable[[Float32], Array], on_host: Callable[[Array], Float32],
) -> list[Float32]:  # fmt: skip
    """Return `scale` times each matrix x (r, c) with its singular values brought near 1.

    `coefficients` are of the quintics; `from_host` copies an array to the device, `on_host` back.
    """

    def column(values: Sequence[float]) -> Array:
        return from_host(np.array(values, np.float32).reshape(-1, 1, 1))

    by_shape: dict[tuple[int, ...], list[int]] = {}
    for k, x in enumerate(xs):
        by_shape.setdefault(x.shape, []).append(k)
    us = list(xs)
    for members in by_shape.values():
        stack = from_host(np.stack([xs[k] for k in members]))
        norms = [global_norm({"x": xs[k]}) for k in members]
        # Each norm becomes less than 1, or 0 where x is too small to have a direction.
        factors = column([0.0 if norm < MIN_NORM else 1.0 / (ROOM * norm) for norm in norms])
        scale = column([scales[k] for k in members])
        identity = from_host(np.eye(min(xs[members[0]].shape), dtype=np.float32))
        result = on_host(_steps(stack * factors, scale, identity, coefficients, xp))
        for k, u in zip(members, result, strict=True):
            us[k] = u
    return us


def _steps(
    x: Array, scale: Array, identity: Array, coefficients: Coefficients, xp: Arrays
) -> Array:
    """Return the Newton-Schulz iteration of matrices (b, r, c) whose norm is below 1."""
    is_wide, transposed = x.shape[1] <= x.shape[2], xp.permute(x, (0, 2, 1))
    gram = x @ transposed if is_wide else transposed @ x
    factor = scale
    for k, (a, b, c) in enumerate(coefficients):
        step = a * identity + b * gram + c * (gram @ gram)
        factor = step @ factor if k else step * factor
        if k + 1 < len(coefficients):
            gram = gram @ step @ step
    return factor @ x if is_wide else x @ factor
