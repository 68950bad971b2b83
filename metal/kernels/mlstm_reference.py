"""The mLSTM kernels in NumPy, computed in float64: `mlstm.h`, then `mlstm_backward.h`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def heads_first(x: Array) -> Array:
    """(B, S, NH, ...) -> (B, NH, S, ...) in float64."""
    return np.asarray(x, np.float64).swapaxes(1, 2)


def _float64(x: Mapping[str, Array], names: str) -> list[Array]:
    return [np.asarray(x[name], np.float64) for name in names.split()]


def _heads_first(x: Mapping[str, Array], names: str) -> list[Array]:
    return [heads_first(x[name]) for name in names.split()]


def chunks(S: int, L: int) -> list[slice]:
    """Positions of every chunk; the last may be shorter than L."""
    return [slice(start, min(start + L, S)) for start in range(0, int(S), int(L))]


def mlstm_gates(
    *, i: Array, f: Array, S: int, L: int, b: Array, a: Array, g: Array, amax: Array, **_: Any
) -> None:
    """Sum logsig(f) inside each chunk; a is the log-weight of each key at the chunk's end."""
    i, lf = heads_first(i), -np.logaddexp(0.0, -heads_first(f))
    for c, at in enumerate(chunks(S, L)):
        sums = np.cumsum(lf[..., at], -1)
        values = sums[..., -1:] - sums + i[..., at]
        b[..., at], a[..., at] = sums, values
        g[..., c], amax[..., c] = sums[..., -1], values.max(-1)


def mlstm_states(*, S: int, L: int, C: Array, n: Array, m: Array, **x: Array) -> None:
    """The state before every chunk, and after the last."""
    k, v = _heads_first(x, "k v")
    a, g, amax, C_now, n_now, m_now = _float64(x, "a g amax C0 n0 m0")
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
    *, S: int, L: int, DK: int, eps: float, h: Array, den: Array, M: Array, **x: Array
) -> None:
    """The output of every position from its chunk and from the state before the chunk."""
    q, k, v, i = _heads_first(x, "q k v i")
    b, C, n, m = _float64(x, "b C n m")
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


def mlstm_bwd_pre(
    *, h: Array, dh: Array, eps: float, rN: Array, dden: Array, dM: Array, **x: Array
) -> None:
    """1 / N of every position, and the gradients of its denominator and of its stabiliser."""
    den, M = _float64(x, "den M")
    floor = np.exp(-M)
    inverse = 1.0 / (np.maximum(np.abs(den), floor) + float(eps))
    dot = (heads_first(h) * heads_first(dh)).sum(-1)
    rN[...] = inverse
    dden[...] = np.where(np.abs(den) > floor, -np.sign(den) * inverse * dot, 0.0)
    dM[...] = -float(eps) * inverse * dot


def mlstm_bwd_states(*, S: int, L: int, DK: int, dC: Array, dn: Array, **x: Array) -> None:
    """The gradient of the state before every chunk, and after the last."""
    q, dh = _heads_first(x, "q dh")
    b, m, M, rN, dden = _float64(x, "b m M rN dden")
    s = float(DK) ** -0.5
    dC_now, dn_now = _float64(x, "dC_last dn_last")
    parts = chunks(S, L)
    dC[:, :, len(parts)], dn[:, :, len(parts)] = dC_now, dn_now
    for c, at in reversed(list(enumerate(parts))):
        decay = np.exp(b[..., at][..., -1] + m[..., c] - m[..., c + 1])
        w = s * np.exp(b[..., at] + m[..., c, None] - M[..., at])
        queries = (w[..., None] * q[:, :, at]).swapaxes(-1, -2)
        u = rN[..., at, None] * dh[:, :, at]
        dC_now = decay[..., None, None] * dC_now + queries @ u
        dn_now = decay[..., None] * dn_now + (queries @ dden[..., at, None])[..., 0]
        dC[:, :, c], dn[:, :, c] = dC_now, dn_now


def mlstm_bwd_out(
    *,
    S: int,
    L: int,
    DK: int,
    dq: Array,
    dk: Array,
    dv: Array,
    di: Array,
    db: Array,
    **x: Array,
) -> None:
    """The gradients of every position; for the forget gates those of their sums b."""
    q, k, v, i, dh = _heads_first(x, "q k v i dh")
    b, C, n, m, M = _float64(x, "b C n m M")
    rN, dden, dC, dn = _float64(x, "rN dden dC dn")
    s = float(DK) ** -0.5
    for c, at in enumerate(chunks(S, L)):
        q_c, k_c, v_c, b_c, i_c = q[:, :, at], k[:, :, at], v[:, :, at], b[..., at], i[..., at]
        u, e = rN[..., at, None] * dh[:, :, at], dden[..., at, None]
        D = b_c[..., :, None] - b_c[..., None, :] + i_c[..., None, :] - M[..., at, None]
        E = s * np.exp(np.where(np.tri(D.shape[-1], dtype=bool), D, -np.inf))
        X = E * (u @ v_c.swapaxes(-1, -2) + e)
        A = E * (q_c @ k_c.swapaxes(-1, -2))
        Z = X * (q_c @ k_c.swapaxes(-1, -2))
        w = s * np.exp(b_c + m[..., c, None] - M[..., at])[..., None]
        y = np.exp(b_c[..., -1:] - b_c + i_c - m[..., c + 1, None])[..., None]
        query_state = w * (u @ C[:, :, c].swapaxes(-1, -2) + e * n[:, :, c, None])
        key_state = y * (v_c @ dC[:, :, c + 1].swapaxes(-1, -2) + dn[:, :, c + 1, None])
        r = (k_c * key_state).sum(-1)
        dq[:, at] = (X @ k_c + query_state).swapaxes(1, 2)
        dk[:, at] = (X.swapaxes(-1, -2) @ q_c + key_state).swapaxes(1, 2)
        dv[:, at] = (A.swapaxes(-1, -2) @ u + y * (k_c @ dC[:, :, c + 1])).swapaxes(1, 2)
        di[:, at] = (Z.sum(-2) + r).swapaxes(1, 2)
        db[..., at] = Z.sum(-1) - Z.sum(-2) - r + (q_c * query_state).sum(-1)
