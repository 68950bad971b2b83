"""The kernels of `mlstm.h` in NumPy, computed in float64; layouts as in `mlstm_shape.h`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def heads_first(x: Array) -> Array:
    """(B, S, NH, ...) -> (B, NH, S, ...) in float64."""
    return np.asarray(x, np.float64).swapaxes(1, 2)


def chunks(S: int, L: int) -> list[slice]:
    """Positions of every chunk; the last may be shorter than L."""
    return [slice(start, min(start + L, S)) for start in range(0, int(S), int(L))]


def mlstm_gates(
    *, i: Array, f: Array, S: int, L: int, b: Array, a: Array, g: Array, amax: Array, **_: Any
) -> None:
    """Sum logsig(f) inside each chunk; a is what a position's key weighs at the chunk's end."""
    i, lf = heads_first(i), -np.logaddexp(0.0, -heads_first(f))
    for c, at in enumerate(chunks(S, L)):
        sums = np.cumsum(lf[..., at], -1)
        values = sums[..., -1:] - sums + i[..., at]
        b[..., at], a[..., at] = sums, values
        g[..., c], amax[..., c] = sums[..., -1], values.max(-1)


def mlstm_states(
    *,
    k: Array,
    v: Array,
    a: Array,
    g: Array,
    amax: Array,
    C0: Array,
    n0: Array,
    m0: Array,
    S: int,
    L: int,
    C: Array,
    n: Array,
    m: Array,
    **_: Any,
) -> None:
    """The state before every chunk, and after the last."""
    k, v = heads_first(k), heads_first(v)
    a, g, amax, C_now, n_now, m_now = (np.asarray(x, np.float64) for x in (a, g, amax, C0, n0, m0))
    C[:, :, 0], n[:, :, 0], m[:, :, 0] = C_now, n_now, m_now
    for c, at in enumerate(chunks(S, L)):
        m_next = np.maximum(g[..., c] + m_now, amax[..., c])
        decay = np.exp(g[..., c] + m_now - m_next)
        keys = np.exp(a[..., at] - m_next[..., None])[..., None] * k[:, :, at]
        C_now = decay[..., None, None] * C_now + keys.swapaxes(-1, -2) @ v[:, :, at]
        n_now = decay[..., None] * n_now + keys.sum(-2)
        m_now = m_next
        C[:, :, c + 1], n[:, :, c + 1], m[:, :, c + 1] = C_now, n_now, m_now


def mlstm_out(
    *,
    q: Array,
    k: Array,
    v: Array,
    b: Array,
    i: Array,
    C: Array,
    n: Array,
    m: Array,
    S: int,
    L: int,
    DK: int,
    eps: float,
    h: Array,
    den: Array,
    M: Array,
    **_: Any,
) -> None:
    """The output of every position from its chunk and from the state before the chunk."""
    q, k, v, i = (heads_first(x) for x in (q, k, v, i))
    b, C, n, m = (np.asarray(x, np.float64) for x in (b, C, n, m))
    s = float(DK) ** -0.5
    for c, at in enumerate(chunks(S, L)):
        b_c, m_c = b[..., at], m[..., c, None]
        D = b_c[..., :, None] - b_c[..., None, :] + i[..., None, at]
        D = np.where(np.tri(D.shape[-1], dtype=bool), D, -np.inf)
        top = np.maximum(b_c + m_c, D.max(-1))
        A = s * (q[:, :, at] @ k[:, :, at].swapaxes(-1, -2)) * np.exp(D - top[..., None])
        w = s * np.exp(b_c + m_c - top)
        num = w[..., None] * (q[:, :, at] @ C[:, :, c]) + A @ v[:, :, at]
        total = w * (q[:, :, at] @ n[:, :, c, :, None])[..., 0] + A.sum(-1)
        out = num / (np.maximum(np.abs(total), np.exp(-top)) + float(eps))[..., None]
        h[:, at] = out.swapaxes(1, 2)
        den[..., at], M[..., at] = total, top
