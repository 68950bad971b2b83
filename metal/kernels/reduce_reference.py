"""NumPy references of `reduce.h`: the same sums in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt32 = NDArray[np.uint32]

GROUP, SIMD, BLOCK = 256, 32, 4096


def sumsq_partial(*, g: Float32, n: int, part: Float32) -> None:
    """Sums of the squares of blocks of 4096."""
    padded = np.zeros(len(part) * BLOCK, np.float32)
    np.square(g.reshape(-1)[:n], out=padded[:n])
    part[:] = _group_sum(_in_turn(padded.reshape(len(part), -1, GROUP)))


def sumsq_final(*, part: Float32, n: int, norm: Float32) -> None:
    """The root of the sum of n parts."""
    padded = np.zeros(-(-n // GROUP) * GROUP, np.float32)
    padded[:n] = part.reshape(-1)[:n]
    norm[:] = np.sqrt(_group_sum(_in_turn(padded.reshape(1, -1, GROUP))))


def clip_scale(*, norm: Float32, max_norm: Any, scale: Float32) -> None:
    """The factor of `mlxhog.optim.gradients.clip_factor`, in float32."""
    most = np.float32(max_norm)
    factor = most / (norm.reshape(-1)[:1] + np.float32(1e-6))
    scale[:] = np.where((most > 0) & (factor < 1), factor, np.float32(1))


def nonfinite_count(*, g: Float32, found: UInt32, n: int, done: UInt32) -> None:
    """Add the number of elements that are NaN or infinite to `found`."""
    found[0] += np.count_nonzero(~np.isfinite(g.reshape(-1)[:n]))
    done[:] = 1


def _in_turn(x: Float32) -> Float32:
    """Sum over axis 1, one after the other, as a thread does; NumPy's own sum goes by pairs."""
    total = np.zeros((x.shape[0], x.shape[2]), np.float32)
    for k in range(x.shape[1]):
        total += x[:, k]
    return total


def _group_sum(x: Float32) -> Float32:
    """Sum over the 256 threads of a group: a butterfly per simdgroup, then one after the other."""
    lanes = x.reshape(len(x), GROUP // SIMD, SIMD)
    while lanes.shape[2] > 1:
        half = lanes.shape[2] // 2
        lanes = lanes[:, :, :half] + lanes[:, :, half:]
    return _in_turn(lanes)[:, 0]
