"""Attention, rotary positions and the linear recurrences in float64 NumPy, position by position.

The plain statement of each operator, which its forms in the frameworks are compared with;
`kernels.py` says what they promise.
"""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def decay_cell(
    q: Float, k: Float, v: Float, log_decay: Float, *, scale: float, state: Float | None = None
) -> tuple[Float, Float]:
    """Return h (B, S, NH, DV) and the last S (B, NH, DK, DV); q, k (B, S, NH, DK)."""
    S = _zeros(q, v) if state is None else state
    h = np.empty(v.shape)
    for t in range(q.shape[1]):
        S = np.exp(log_decay[:, t])[..., None] * S + k[:, t, :, :, None] * v[:, t, :, None]
        h[:, t] = scale * np.einsum("bhkv,bhk->bhv", S, q[:, t])
    return h, S


def delta_cell(
    q: Float, k: Float, v: Float, log_decay: Float, beta: Float, *, state: Float | None = None
) -> tuple[Float, Float]:
    """Return h (B, S, NH, DV) and the last S (B, NH, DK, DV); q, k (B, S, NH, DK)."""
    S = _zeros(q, v) if state is None else state
    h = np.empty(v.shape)
    for t in range(q.shape[1]):
        S = np.exp(log_decay[:, t])[..., None, None] * S
        held = np.einsum("bhkv,bhk->bhv", S, k[:, t])
        write = beta[:, t, :, None] * (v[:, t] - held)
        S = S + k[:, t, :, :, None] * write[:, :, None]
        h[:, t] = np.einsum("bhkv,bhk->bhv", S, q[:, t])
    return h, S


def selective_scan(
    u: Float, dt: Float, A: Float, Bt: Float, Ct: Float, *, state: Float | None = None
) -> tuple[Float, Float]:
    """Return y (B, S, C) and the last S (B, C, N); u, dt (B, S, C), A (C, N), Bt, Ct (B, S, N)."""
    S = np.zeros((len(u), *A.shape)) if state is None else state
    y = np.empty(u.shape)
    for t in range(u.shape[1]):
        written = (dt[:, t] * u[:, t])[..., None] * Bt[:, t, None]
        S = np.exp(dt[:, t, :, None] * A) * S + written
        y[:, t] = np.einsum("bcn,bn->bc", S, Ct[:, t])
    return y, S


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


def _zeros(q: Float, v: Float) -> Float:
    B, _, NH, DK = q.shape
    return np.zeros((B, NH, DK, v.shape[-1]))
