"""Averaged runs: the mean of the workers' own parameters becomes the shared ones (MapReduce)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mlxhog.classic.problem import Float32


def average(shared: Mapping[str, Float32], copies: Sequence[Mapping[str, Float32]]) -> None:
    """Set every shared parameter to the mean of its copies, summed in float64 in their order.

    The mean of one copy is that copy, bit for bit.

    Concurrency: nobody may be writing the copies.
    """
    for name, target in shared.items():
        total = copies[0][name].astype(np.float64)
        for copy in copies[1:]:
            total += copy[name]
        np.copyto(target, total / len(copies), casting="same_kind")
