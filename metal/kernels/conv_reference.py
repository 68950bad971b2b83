"""The kernels of `conv.h` in NumPy, computed in float64; layouts as there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 64  # kConvBlock


def conv_forward(*, x: Array, w: Array, bias: Array, y: Array, **_: Any) -> None:
    """Convolve causally, channel by channel, then SiLU."""
    pre = _pre(x, w, bias)
    y[...] = pre * _sigmoid(pre)


def conv_bwd_pre(*, x: Array, w: Array, bias: Array, dy: Array, dpre: Array, **_: Any) -> None:
    """Differentiate SiLU."""
    pre = _pre(x, w, bias)
    gate = _sigmoid(pre)
    dpre[...] = dy * gate * (1.0 + pre * (1.0 - gate))


def conv_bwd_input(*, w: Array, dpre: Array, dx: Array, **_: Any) -> None:
    """Differentiate the convolution with respect to x."""
    K, S = w.shape[-1], dpre.shape[1]
    total = np.zeros(dpre.shape)
    for ahead in range(min(K, S)):
        total[:, : S - ahead] += w[:, 0, K - 1 - ahead] * np.asarray(dpre[:, ahead:], np.float64)
    dx[...] = total


def conv_bwd_partial(*, x: Array, dpre: Array, K: int, part: Array, **_: Any) -> None:
    """Sum the gradients of taps and bias over every block of positions."""
    shifted = _shifted(x, int(K))
    terms = np.stack([dpre * tap for tap in shifted] + [np.asarray(dpre, np.float64)], 2)
    starts = range(0, dpre.shape[1], BLOCK)
    part[...] = np.stack([terms[:, start : start + BLOCK].sum(1) for start in starts], 1)


def conv_bwd_final(*, part: Array, dw: Array, dbias: Array, **_: Any) -> None:
    """Sum the parts."""
    total = np.asarray(part, np.float64).sum((0, 1))  # (K + 1, CH)
    dw[:, 0], dbias[...] = total[:-1].T, total[-1]


def _shifted(x: Array, K: int) -> list[Array]:
    """What each tap meets: x K-1 positions earlier, .., x itself; 0 before the start."""
    x = np.asarray(x, np.float64)
    padded = np.pad(x, ((0, 0), (K - 1, 0), (0, 0)))
    return [padded[:, j : j + x.shape[1]] for j in range(K)]


def _pre(x: Array, w: Array, bias: Array) -> Array:
    taps = _shifted(x, w.shape[-1])
    total: Array = np.asarray(bias, np.float64) + sum(
        w[:, 0, j] * tap for j, tap in enumerate(taps)
    )
    return total


def _sigmoid(x: Array) -> Array:
    result: Array = np.exp(-np.logaddexp(0.0, -x))
    return result
