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


def mlstm_bwd_pre(*, S: int, L: int, DK: int, h: Array, dh: Array, eps: float, **x: Array) -> None:
    """1 / N of every position, the gradients of its denominator and of its stabiliser, weights."""
    den, m, b, M = _float64(x, "den m b M")
    floor = np.exp(-M)
    inverse = 1.0 / (np.maximum(np.abs(den), floor) + float(eps))
    dot = (heads_first(h) * heads_first(dh)).sum(-1)
    e = np.where(np.abs(den) > floor, -np.sign(den) * inverse * dot, 0.0)
    x["rN"][...], x["dden"][...], x["dM"][...] = inverse, e, -float(eps) * inverse * dot
    for c, at in enumerate(chunks(S, L)):
        w = float(DK) ** -0.5 * np.exp(b[..., at] + m[..., c, None] - M[..., at])
        x["wN"][..., at], x["we"][..., at] = w * inverse[..., at], w * e[..., at]
        weight = b[..., at][..., -1:] - b[..., at] + heads_first(x["i"])[..., at]
        x["y"][..., at] = np.exp(weight - m[..., c + 1, None])


def mlstm_bwd_states(*, S: int, L: int, dC: Array, dn: Array, **x: Array) -> None:
    """The gradient of the state before every chunk, and after the last."""
    q, dh = _heads_first(x, "q dh")
    b, m, wN, we = _float64(x, "b m wN we")
    dC_now, dn_now = _float64(x, "dC_last dn_last")
    parts = chunks(S, L)
    dC[:, :, len(parts)], dn[:, :, len(parts)] = dC_now, dn_now
    for c, at in reversed(list(enumerate(parts))):
        decay = np.exp(b[..., at][..., -1] + m[..., c] - m[..., c + 1])
        queries = q[:, :, at].swapaxes(-1, -2)
        dC_now = decay[..., None, None] * dC_now
        dC_now = dC_now + (queries * wN[..., None, at]) @ dh[:, :, at]
        dn_now = decay[..., None] * dn_now + (queries * we[..., None, at]).sum(-1)
        dC[:, :, c], dn[:, :, c] = dC_now, dn_now


def mlstm_bwd_scores(
    *, S: int, L: int, DK: int, X: Array, A: Array, zq: Array, zk: Array, **x: Array
) -> None:
    """Gradients of products of queries and keys, weights of values; sums by position and key."""
    q, k, v, i, dh = _heads_first(x, "q k v i dh")
    b, M, rN, dden = _float64(x, "b M rN dden")
    X[...], A[...] = 0.0, 0.0
    for at in chunks(S, L):
        b_c, rN_c, e = b[..., at], rN[..., at, None], dden[..., at, None]
        D = b_c[..., :, None] - b_c[..., None, :] + i[..., None, at] - M[..., at, None]
        E = float(DK) ** -0.5 * np.exp(np.where(np.tri(D.shape[-1], dtype=bool), D, -np.inf))
        q_k = q[:, :, at] @ k[:, :, at].swapaxes(-1, -2)
        weights = E * (rN_c * (dh[:, :, at] @ v[:, :, at].swapaxes(-1, -2)) + e)
        X[..., at, : D.shape[-1]], A[..., at, : D.shape[-1]] = weights, E * q_k * rN_c
        Z = weights * q_k
        off = np.tril(Z, -1)
        zq[..., at], zk[..., at] = off.sum(-1) - off.sum(-2), Z.sum(-2)


def mlstm_bwd_out(
    *,
    S: int,
    L: int,
    dq: Array,
    dk: Array,
    dv: Array,
    di: Array,
    db: Array,
    **x: Array,
) -> None:
    """The gradients of every position; for the forget gates those of their sums b."""
    q, k, v, dh = _heads_first(x, "q k v dh")
    C, n, dC, dn, X, A, zq, zk = _float64(x, "C n dC dn X A zq zk")
    wN, we, y = (part[..., None] for part in _float64(x, "wN we y"))
    for c, at in enumerate(chunks(S, L)):
        q_c, k_c, v_c, dh_c = (part[:, :, at] for part in (q, k, v, dh))
        X_c, A_c = (part[..., at, : q_c.shape[2]] for part in (X, A))
        states = C[:, :, c].swapaxes(-1, -2), dC[:, :, c + 1].swapaxes(-1, -2)
        of_query = (wN[:, :, at] * dh_c) @ states[0] + we[:, :, at] * n[:, :, c, None]
        of_key = y[:, :, at] * (v_c @ states[1] + dn[:, :, c + 1, None])
        r = (k_c * of_key).sum(-1)
        dq[:, at] = (X_c @ k_c + of_query).swapaxes(1, 2)
        dk[:, at] = (X_c.swapaxes(-1, -2) @ q_c + of_key).swapaxes(1, 2)
        of_value = y[:, :, at] * (k_c @ dC[:, :, c + 1])
        dv[:, at] = (A_c.swapaxes(-1, -2) @ dh_c + of_value).swapaxes(1, 2)
        di[:, at] = (zk[..., at] + r).swapaxes(1, 2)
        db[..., at] = zq[..., at] - r + (q_c * of_query).sum(-1)
