"""NumPy references of `steps.h` and `row_steps.h`, for one writer, rounded as the native steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]
UInt32 = NDArray[np.uint32]
Where = NDArray[np.integer[Any]]

FLAG_FLOATS = 32


def sgd_apply(
    *,
    arena: Float32,
    g: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    n: int,
    offset: int,
    done: UInt32,
) -> None:
    """See `steps.sgd_apply`."""
    _sgd(arena, offset + np.arange(n), g.reshape(-1)[:n], decays, hp, grad_scale)
    done[:] = 1


def sgd_apply_rows(
    *,
    arena: Float32,
    rows: Int32,
    g: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    d: int,
    n_rows: int,
    height: int,
    offset: int,
    done: UInt32,
) -> None:
    """See `row_steps.sgd_apply_rows`."""
    p, q = _elements(rows, d, n_rows, height, done)
    _sgd(arena, offset + p, g.reshape(-1)[q], decays, hp, grad_scale)


def momentum_apply(
    *,
    arena: Float32,
    g: Float32,
    m: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    n: int,
    offset: int,
    m_out: Float32,
) -> None:
    """See `steps.momentum_apply`."""
    flat_g, flat_m = g.reshape(-1)[:n], m.reshape(-1)[:n]
    m_out[:] = _momentum(arena, offset + np.arange(n), flat_g, flat_m, decays, hp, grad_scale)


def momentum_apply_rows(
    *,
    arena: Float32,
    rows: Int32,
    g: Float32,
    m: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    d: int,
    n_rows: int,
    height: int,
    offset: int,
    done: UInt32,
    m_out: Float32,
) -> None:
    """See `row_steps.momentum_apply_rows`."""
    p, q = _elements(rows, d, n_rows, height, done)
    flat_g, flat_m = g.reshape(-1)[q], m.reshape(-1)[p]
    out = _momentum(arena, offset + p, flat_g, flat_m, decays, hp, grad_scale)
    m_out.reshape(-1)[q] = out


def adam_apply(
    *,
    arena: Float32,
    g: Float32,
    m: Float32,
    v: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    n: int,
    offset: int,
    m_out: Float32,
    v_out: Float32,
) -> None:
    """See `steps.adam_apply`."""
    moments = m.reshape(-1)[:n], v.reshape(-1)[:n]
    at = offset + np.arange(n)
    m_out[:], v_out[:] = _adam(arena, at, g.reshape(-1)[:n], *moments, decays, hp, grad_scale)


def adam_apply_rows(
    *,
    arena: Float32,
    rows: Int32,
    g: Float32,
    m: Float32,
    v: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    d: int,
    n_rows: int,
    height: int,
    offset: int,
    done: UInt32,
    m_out: Float32,
    v_out: Float32,
) -> None:
    """See `row_steps.adam_apply_rows`."""
    p, q = _elements(rows, d, n_rows, height, done)
    moments = m.reshape(-1)[p], v.reshape(-1)[p]
    new = _adam(arena, offset + p, g.reshape(-1)[q], *moments, decays, hp, grad_scale)
    m_out.reshape(-1)[q], v_out.reshape(-1)[q] = new


def adam_shared_apply(
    *,
    arena: Float32,
    v: Float32,
    failures: UInt32,
    g: Float32,
    m: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    n: int,
    offset: int,
    m_out: Float32,
) -> None:
    """See `steps.adam_shared_apply`; never fails."""
    at = offset + np.arange(n)
    flat_g, flat_m = g.reshape(-1)[:n], m.reshape(-1)[:n]
    m_out[:], v[at] = _adam(arena, at, flat_g, flat_m, v[at], decays, hp, grad_scale)


def adam_shared_apply_rows(
    *,
    arena: Float32,
    v: Float32,
    failures: UInt32,
    rows: Int32,
    g: Float32,
    m: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
    d: int,
    n_rows: int,
    height: int,
    offset: int,
    done: UInt32,
    m_out: Float32,
) -> None:
    """See `row_steps.adam_shared_apply_rows`; never fails."""
    p, q = _elements(rows, d, n_rows, height, done)
    at = offset + p
    flat_g, flat_m = g.reshape(-1)[q], m.reshape(-1)[p]
    new = _adam(arena, at, flat_g, flat_m, v[at], decays, hp, grad_scale)
    m_out.reshape(-1)[q], v[at] = new


def channel_scale_apply(
    *,
    arena: Float32,
    g: Float32,
    s: Float32,
    coef: Any,
    decay: Any,
    cols: int,
    row_step: int,
    col_step: int,
    n: int,
    offset: int,
    done: UInt32,
) -> None:
    """See `steps.channel_scale_apply`."""
    i = np.arange(n)
    factor = s.reshape(-1)[i // max(1, cols) * row_step + i % max(1, cols) * col_step]
    w = arena[offset : offset + n]
    w += np.float32(coef) * (g.reshape(-1)[:n] * factor) - np.float32(decay) * w
    done[:] = 1


def _elements(rows: Int32, d: int, n_rows: int, height: int, done: UInt32) -> tuple[Where, Where]:
    """Where the rows lie in the parameter, and where in the gradient, element by element."""
    inside = (rows[:n_rows] >= 0) & (rows[:n_rows] < height)
    done[:] = inside
    column = np.arange(d)
    p = rows[:n_rows][inside].astype(np.int64)[:, None] * d + column
    q = np.flatnonzero(inside)[:, None] * d + column
    return p.reshape(-1), q.reshape(-1)


def _rate(decays: UInt8, at: Where, rate: np.float32) -> Float32:
    return np.where(decays[at // FLAG_FLOATS] != 0, rate, np.float32(0))


def _sgd(
    arena: Float32, at: Where, g: Float32, decays: UInt8, hp: Float32, grad_scale: Any
) -> None:
    w = arena[at]
    d = np.float32(grad_scale) * g + _rate(decays, at, hp[1]) * w
    arena[at] = w + -(hp[0] * d)


def _momentum(
    arena: Float32, at: Where, g: Float32, m: Float32, decays: UInt8, hp: Float32, grad_scale: Any
) -> Float32:
    w = arena[at]
    d = np.float32(grad_scale) * g + _rate(decays, at, hp[1]) * w
    mean: Float32 = hp[2] * m + d
    arena[at] = w + -(hp[0] * (d + hp[2] * mean if hp[3] else mean))
    return mean


def _adam(
    arena: Float32,
    at: Where,
    g: Float32,
    m: Float32,
    v: Float32,
    decays: UInt8,
    hp: Float32,
    grad_scale: Any,
) -> tuple[Float32, Float32]:
    decay, step, beta1, one_minus_beta1, beta2, one_minus_beta2, rsqrt_bias2, eps = hp[:8]
    w = arena[at]
    s = np.float32(grad_scale) * g
    mean: Float32 = beta1 * m + one_minus_beta1 * s
    square: Float32 = beta2 * v + one_minus_beta2 * (s * s)
    denominator = np.sqrt(square) * rsqrt_bias2 + eps
    arena[at] = w + -(_rate(decays, at, decay) * w + step * (mean / denominator))
    return mean, square
