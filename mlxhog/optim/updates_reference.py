"""The native updates in plain NumPy; for one worker, without locks."""

from __future__ import annotations

import numpy as np

from mlxhog.optim.gradients import Float32, Int32, Rows


def add(flat: Float32, offset: int, shape: tuple[int, ...], delta: Float32 | Rows) -> None:
    """Add a dense delta, or some rows (duplicates add up), to the parameter at `offset`."""
    param = view(flat, offset, shape)
    if isinstance(delta, Rows):
        np.add.at(param, delta.index, delta.values)
    else:
        param += delta


def add_at(flat: Float32, offset: int, index: Int32, values: Float32) -> None:
    """Add `values` to distinct elements of the parameter at `offset`."""
    flat[offset + index] += values


def view(flat: Float32, offset: int, shape: tuple[int, ...]) -> Float32:
    """The parameter's own view into the segment."""
    return flat[offset : offset + int(np.prod(shape))].reshape(shape)


def snapshot_predict(dst: Float32, src: Float32, prev: Float32, coef: float) -> None:
    """Set `dst = src + coef * (src - prev)`, then `prev = src`."""
    now = src.copy()
    dst[...] = now + np.float32(coef) * (now - prev)
    prev[...] = now


def snapshot_ahead(
    dst: Float32, src: Float32, last: Float32, prev: Float32, *, horizon: float, trend: float
) -> None:
    """Set `dst = src + horizon * (last + trend * (last - prev))`."""
    a, b = np.float32(horizon * (1.0 + trend)), np.float32(horizon * trend)
    dst[...] = src + (a * last - b * prev)


def sumsq(g: Float32) -> float:
    """Sum of squares in float64."""
    return float(np.sum(np.square(g, dtype=np.float64)))
