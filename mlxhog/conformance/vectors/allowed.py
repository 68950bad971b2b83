"""Tolerances of the results of a case, in each dtype, and why."""

from collections.abc import Mapping, Sequence

import numpy as np

from mlxhog.conformance.vectors.case import Allowed, Array
from mlxhog.conformance.vectors.equations import Equations

HALF_PLACE = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12}


def tolerances(
    equations: Equations,
    inputs: Mapping[str, Array],
    cotangents: Mapping[str, Array],
    expected: Mapping[str, Array],
    dtypes: Sequence[str],
) -> dict[str, dict[str, Allowed]]:
    """Return how far each result may be from the expected one."""
    largest = {name: float(np.abs(x).max(initial=0.0)) for name, x in expected.items()}
    return {
        dtype: {
            name: Allowed(64 * HALF_PLACE[dtype] * size + 1e-30, "64 roundings of the largest")
            for name, size in largest.items()
        }
        for dtype in dtypes
    }
