"""The rules of optimizer steps: the rates that kernels read, and the formulas in NumPy.

A step's rates are `hp`, (8,) float32, rounded once from float64, as the native steps do:

    SGD, momentum   lr, weight_decay, momentum, nesterov (0 or 1), four unused
    AdamW           lr * weight_decay, lr / bias1, beta1, 1 - beta1, beta2, 1 - beta2,
                    1 / sqrt(bias2), eps
    Muon            beta1, 1 - beta1, nesterov, 1 - nesterov, four unused

Formulas round as the native steps do, for one writer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt32 = NDArray[np.uint32]
Places = NDArray[np.integer[Any]]
Flags = Places | bool

HP = 8  # floats
FLAG_FLOATS = 32

Formula = Callable[..., tuple[Float32, ...]]
"""(hp, w, scaled gradient, whether an element decays, *state) -> (increment of w, *new state)"""


def sgd_hp(*, lr: float, weight_decay: float) -> Float32:
    """Rates of SGD."""
    return momentum_hp(lr=lr, momentum=0.0, nesterov=False, weight_decay=weight_decay)


def momentum_hp(*, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Float32:
    """Rates of momentum."""
    return np.array([lr, weight_decay, momentum, nesterov, 0, 0, 0, 0], np.float32)


def adam_hp(
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    bias1: float,
    bias2: float,
) -> Float32:
    """Rates of AdamW, with private or shared moments; bias1 and bias2 are 1 - beta^t."""
    first = [lr * weight_decay, lr / bias1, beta1, 1.0 - beta1]
    return np.array([*first, beta2, 1.0 - beta2, 1.0 / math.sqrt(bias2), eps], np.float32)


def muon_hp(*, beta1: float, nesterov: float) -> Float32:
    """Rates of Muon's directions."""
    return np.array([beta1, 1.0 - beta1, nesterov, 1.0 - nesterov, 0, 0, 0, 0], np.float32)


def sgd(hp: Float32, w: Float32, g: Float32, decays: Flags) -> tuple[Float32, ...]:
    """`w -= lr * (g + weight_decay * w)`."""
    d = g + _rate(decays, hp[1]) * w
    return (-(hp[0] * d),)


def momentum(hp: Float32, w: Float32, g: Float32, decays: Flags, m: Float32) -> tuple[Float32, ...]:
    """`m = momentum * m + d; w -= lr * m` with d as in `sgd`.

    With Nesterov's look-ahead w moves by `lr * (d + momentum * m)`.
    """
    d = g + _rate(decays, hp[1]) * w
    mean: Float32 = hp[2] * m + d
    return -(hp[0] * (d + hp[2] * mean if hp[3] else mean)), mean


def adam(
    hp: Float32, w: Float32, g: Float32, decays: Flags, m: Float32, v: Float32
) -> tuple[Float32, ...]:
    """AdamW: m and v are the exponential means of g and g^2.

    w loses lr * (weight_decay * w + (m / bias1) / (sqrt(v / bias2) + eps)).
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    decay, step, beta1, one_minus_beta1, beta2, one_minus_beta2, rsqrt_bias2, eps = hp[:8]
    mean: Float32 = beta1 * m + one_minus_beta1 * g
    square: Float32 = beta2 * v + one_minus_beta2 * (g * g)
    denominator = np.sqrt(square) * rsqrt_bias2 + eps
    return -(_rate(decays, decay) * w + step * (mean / denominator)), mean, square


def _rate(decays: Flags, rate: np.float32) -> Float32:
    return np.where(decays != 0, rate, np.float32(0))


def dense_reference(formula: Formula, moments: Sequence[str]) -> Callable[..., None]:
    """Return the reference of a kernel that steps a run of dense parameters."""

    def reference(*, n: int, done: UInt32, **x: Any) -> None:
        _step(formula, moments, np.arange(n), np.arange(n), x)
        done[:] = 1

    return reference


def rows_reference(formula: Formula, moments: Sequence[str]) -> Callable[..., None]:
    """Return the reference of a kernel that steps some rows of a parameter."""

    def reference(*, d: int, n_rows: int, height: int, done: UInt32, **x: Any) -> None:
        rows, column = x["rows"][:n_rows], np.arange(d)
        inside = (rows >= 0) & (rows < height)
        done[:] = inside
        at = rows[inside].astype(np.int64)[:, None] * d + column
        at_g = np.flatnonzero(inside)[:, None] * d + column
        _step(formula, moments, at.reshape(-1), at_g.reshape(-1), x)

    return reference


def _step(
    formula: Formula, moments: Sequence[str], at: Places, at_g: Places, x: dict[str, Any]
) -> None:
    """Step elements `at` of a parameter, and their moments, by elements `at_g` of the gradient."""
    arena, in_arena = x["arena"], x["offset"] + at
    g = np.float32(x["grad_scale"]) * x["g"].reshape(-1)[at_g]
    state = [x[name][in_arena] for name in moments]
    decays = x["decays"][in_arena // FLAG_FLOATS]
    delta, *new = formula(x["hp"], arena[in_arena], g, decays, *state)
    arena[in_arena] += delta
    if "last" in x:
        x["prev"][in_arena] = x["last"][in_arena]
        x["last"][in_arena] = delta
    for name, value in zip(moments, new, strict=True):
        x[name][in_arena] = value


def muon_direction_reference(
    *,
    m: Float32,
    g: Float32,
    hp: Float32,
    grad_scale: Any,
    n: int,
    offset: int,
    x_out: Float32,
    failures: UInt32 | None = None,
) -> None:
    """Move m, the exponential mean of s = grad_scale * g; x = (1 - nesterov) m + nesterov s."""
    beta1, one_minus_beta1, nesterov, one_minus_nesterov = hp[:4]
    s = np.float32(grad_scale) * g.reshape(-1)[:n]
    mean = m[offset : offset + n]
    mean[:] = beta1 * mean + one_minus_beta1 * s
    x_out[:] = one_minus_nesterov * mean + nesterov * s


def channel_scale_reference(
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
    """APOLLO's step, `w += coef * (g * s) - decay * w`."""
    i = np.arange(n)
    factor = s.reshape(-1)[i // max(1, cols) * row_step + i % max(1, cols) * col_step]
    w = arena[offset : offset + n]
    w += np.float32(coef) * (g.reshape(-1)[:n] * factor) - np.float32(decay) * w
    done[:] = 1
