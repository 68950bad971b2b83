"""The linear recurrences in float64 NumPy, position by position; `kernels.py` says what they are.

The plain statement of each, which its forms in the frameworks are compared with.
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


def _zeros(q: Float, v: Float) -> Float:
    B, _, NH, DK = q.shape
    return np.zeros((B, NH, DK, v.shape[-1]))
