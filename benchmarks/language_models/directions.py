"""Muon's directions by a worker's framework, beside those of native code and beside float64.

For programs in processes of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DRAWN, GRADED = "drawn", "graded"
BESIDE_OURS = "device and ours, absolute"
SHAPES = ((64, 128), (128, 128), (192, 96))
LEAST = 1e-5
"""Smallest singular value of a graded matrix, over the largest."""


def apart(threads: int, backend: str, method: str, kind: str) -> dict[str, float]:
    """Largest differences of directions between pairs of programs, over their largest element.

    Those of device and ours also absolute: the singular values of a direction are about 1.

    Args:
        threads: of the backend.
        backend: "mlx:cpu" or "torch:cpu".
        method: a key of `ORTHOGONALIZATIONS`.
        kind: `DRAWN` for normal numbers, `GRADED` for singular values down to `LEAST`.
    """
    from mlxhog import _native, backends
    from mlxhog.optim.muon import ORTHOGONALIZATIONS

    worker = backends.create(backend, threads=threads, kernels="reference", cpu_blas="auto")
    coefficients, largest = ORTHOGONALIZATIONS[method], dict[str, float]()
    for x in _matrices(kind):
        ours = np.empty_like(x)
        _native.polar([x], [ours], [1.0], coefficients)
        (theirs,) = worker.polar([x], [1.0], coefficients)
        exact = by_singular_values(x, coefficients)
        pairs = {
            "device and ours": (theirs, ours),
            "ours": (ours, exact),
            "device": (theirs, exact),
        }
        for name, (a, b) in pairs.items():
            off = float(np.abs(a - b).max() / np.abs(exact).max())
            largest[name] = max(largest.get(name, 0.0), off)
        off = float(np.abs(theirs - ours).max())
        largest[BESIDE_OURS] = max(largest.get(BESIDE_OURS, 0.0), off)
    return largest


def _matrices(kind: str) -> list[Any]:
    random = np.random.default_rng(0)
    xs = [random.standard_normal(shape) for shape in SHAPES]
    if kind == GRADED:
        for k, x in enumerate(xs):
            u, s, v = np.linalg.svd(x, full_matrices=False)
            xs[k] = (u * np.geomspace(1.0, LEAST, len(s))) @ v
    return [x.astype(np.float32) for x in xs]


def by_singular_values(x: Any, coefficients: Any) -> Any:
    """The direction in float64: the quintics of the singular values."""
    from mlxhog.optim.muon import ROOM

    x = x.astype(np.float64)
    u, s, v = np.linalg.svd(x / (ROOM * np.linalg.norm(x)), full_matrices=False)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ v
