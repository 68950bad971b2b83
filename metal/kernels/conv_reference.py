"""The kernels of `conv.h` in NumPy, computed in float64; layouts as there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 64  # kConvBlock


def conv_forward(
    *, x: Array, w: Array, bias: Array, back: Array, silu: int, y: Array, **_: Any
) -> None:
    """Convolve causally, channel by channel, then SiLU where it is asked for."""
    pre = _pre(x, w, bias, back)
    y[...] = pre * _sigmoid(pre) if silu else pre


def conv_bwd_pre(
    *, x: Array, w: Array, bias: Array, back: Array, dy: Array, dpre: Array, **_: Any
) -> None:
    """Differentiate SiLU."""
    pre = _pre(x, w, bias, back)
    gate = _sigmoid(pre)
    dpre[...] = dy * gate * (1.0 + pre * (1.0 - gate))


def conv_bwd_input(*, w: Array, back: Array, dpre: Array, dx: Array, **_: Any) -> None:
    """Differentiate the convolution with respect to x."""
    K, S = w.shape[-1], dpre.shape[1]
    before = K - 1  # rows in front of the first output
    total = np.zeros((dpre.shape[0], before + S, dpre.shape[2]))
    for d in range(K):
        seen = np.where(back[:, :, None] >= d, np.asarray(dpre, np.float64), 0.0)
        total[:, before - d : before - d + S] += w[:, 0, K - 1 - d] * seen
    dx[...] = total[:, before + S - dx.shape[1] :]


def conv_bwd_partial(*, x: Array, back: Array, dpre: Array, K: int, part: Array, **_: Any) -> None:
    """Sum the gradients of taps and bias over every block of positions."""
    taps = _taps(x, back, int(K))
    terms = np.stack([dpre * tap for tap in taps] + [np.asarray(dpre, np.float64)], 2)
    starts = range(0, dpre.shape[1], BLOCK)
    part[...] = np.stack([terms[:, start : start + BLOCK].sum(1) for start in starts], 1)


def conv_bwd_final(*, part: Array, dw: Array, dbias: Array, **_: Any) -> None:
    """Sum the parts."""
    total = np.asarray(part, np.float64).sum((0, 1))  # (K + 1, CH)
    dw[:, 0], dbias[...] = total[:-1].T, total[-1]


def _taps(x: Array, back: Array, K: int) -> list[Array]:
    """What each tap meets: x K-1 positions earlier, .., x itself; 0 where the output sees none."""
    S = back.shape[1]
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (K - 1, 0), (0, 0)))
    rows = padded.shape[1]
    seen = [(back >= d)[..., None] for d in range(K)]
    return [np.where(seen[d], padded[:, rows - S - d : rows - d], 0.0) for d in reversed(range(K))]


def _pre(x: Array, w: Array, bias: Array, back: Array) -> Array:
    taps = _taps(x, back, w.shape[-1])
    total: Array = np.asarray(bias, np.float64) + sum(
        w[:, 0, j] * tap for j, tap in enumerate(taps)
    )
    return total


def _sigmoid(x: Array) -> Array:
    result: Array = np.exp(-np.logaddexp(0.0, -x))
    return result
