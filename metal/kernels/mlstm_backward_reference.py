"""The kernels of `mlstm_backward.h` in NumPy, computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.metal.kernels.mlstm_reference import Array, chunks, heads_first


def mlstm_bwd_pre(
    *,
    den: Array,
    M: Array,
    h: Array,
    dh: Array,
    eps: float,
    rN: Array,
    dden: Array,
    dM: Array,
    **_: Any,
) -> None:
    """1 / N of every position, and the gradients of its denominator and of its stabiliser."""
    den, M = np.asarray(den, np.float64), np.asarray(M, np.float64)
    floor = np.exp(-M)
    inverse = 1.0 / (np.maximum(np.abs(den), floor) + float(eps))
    dot = (heads_first(h) * heads_first(dh)).sum(-1)
    rN[...] = inverse
    dden[...] = np.where(np.abs(den) > floor, -np.sign(den) * inverse * dot, 0.0)
    dM[...] = -float(eps) * inverse * dot


def mlstm_bwd_states(
    *,
    q: Array,
    b: Array,
    m: Array,
    M: Array,
    rN: Array,
    dden: Array,
    dh: Array,
    dC_last: Array,
    dn_last: Array,
    S: int,
    L: int,
    DK: int,
    dC: Array,
    dn: Array,
    **_: Any,
) -> None:
    """The gradient of the state before every chunk, and after the last."""
    q, dh = heads_first(q), heads_first(dh)
    b, m, M, rN, dden = (np.asarray(x, np.float64) for x in (b, m, M, rN, dden))
    s = float(DK) ** -0.5
    dC_now, dn_now = np.asarray(dC_last, np.float64), np.asarray(dn_last, np.float64)
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
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    b: Array,
    C: Array,
    n: Array,
    m: Array,
    M: Array,
    rN: Array,
    dden: Array,
    dh: Array,
    dC: Array,
    dn: Array,
    S: int,
    L: int,
    DK: int,
    dq: Array,
    dk: Array,
    dv: Array,
    di: Array,
    db: Array,
    **_: Any,
) -> None:
    """The gradients of every position, with those of the sums b in place of the forget gates."""
    q, k, v, i, dh = (heads_first(x) for x in (q, k, v, i, dh))
    b, C, n, m, M = (np.asarray(x, np.float64) for x in (b, C, n, m, M))
    rN, dden, dC, dn = (np.asarray(x, np.float64) for x in (rN, dden, dC, dn))
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
