"""Rotary positions and causal attention in float64 NumPy; `kernels.py` says what they promise."""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def rope(x: Float, base: float, offset: NDArray[np.integer] | None = None) -> Float:
    """Turn pair i of every head of x (B, S, NH, DH) as a complex number."""
    B, S, _, DH = x.shape
    first = np.zeros(B) if offset is None else offset
    t = first[:, None, None, None] + np.arange(S)[:, None, None]
    turn = np.exp(1j * t * base ** (-2 * np.arange(DH // 2) / DH))
    pairs = (x[..., : DH // 2] + 1j * x[..., DH // 2 :]) * turn
    return np.concatenate([pairs.real, pairs.imag], -1)


def attention(
    q: Float,
    k: Float,
    v: Float,
    *,
    window: int | None = None,
    lengths: NDArray[np.integer] | None = None,
) -> Float:
    """Attend from q (B, S, NH, DH) to k, v (B, L, NH, DH), position by position."""
    B, S, NH, DH = q.shape
    L = k.shape[1]
    h = np.empty(q.shape)
    for b in range(B):
        oldest = 0 if lengths is None else L - int(lengths[b])
        for t in range(L - S, L):
            first = oldest if window is None else max(oldest, t - window)
            for n in range(NH):
                scores = k[b, first : t + 1, n] @ q[b, t - L + S, n] / np.sqrt(DH)
                weights = np.exp(scores - scores.max())
                h[b, t - L + S, n] = weights @ v[b, first : t + 1, n] / weights.sum()
    return h
