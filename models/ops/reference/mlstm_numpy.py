"""The mLSTM cell in its three equal forms, in float64 NumPy: the reference of every other cell.

Layouts as everywhere: q, k (B, S, NH, DK), v and h (B, S, NH, DV), gate pre-activations i, f
(B, S, NH); state C (B, NH, DK, DV), n (B, NH, DK), m (B, NH), None is all zeros. s = DK^-1/2. The
recurrence is in `models/xlstm_large/model.py`.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517 (recurrent and parallel forms);
Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376 (chunkwise form).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
State = tuple[Float, Float, Float]
Backward = Callable[..., tuple[Float, ...]]


def log_sigmoid(x: Float) -> Float:
    """Return log(1 / (1 + exp(-x))), finite for every finite x."""
    result: Float = -np.logaddexp(0.0, -x)
    return result


def zero_state(q: Float, v: Float) -> State:
    """Return the state before the first position."""
    B, _, NH, DK = q.shape
    return np.zeros((B, NH, DK, v.shape[-1])), np.zeros((B, NH, DK)), np.zeros((B, NH))


def _finite(*x: Float) -> tuple[list[Float], NDArray[np.bool_]]:
    """Return k, v, i, f with zeros where one is not finite, and which positions are behind one.

    A later position counts 0 times, and 0 times NaN is NaN. Gates may be -inf. The second result
    is (B, S, NH).
    """
    ok = [np.isfinite(y).all(-1) if y.ndim == 4 else y < np.inf for y in x]
    bad = ~np.logical_and.reduce(ok)
    clean = [np.where(bad.reshape(*bad.shape, *[1] * (y.ndim - 3)), 0.0, y) for y in x]
    return clean, np.logical_or.accumulate(bad, 1)


def recurrent(
    q: Float,
    k: Float,
    v: Float,
    i: Float,
    f: Float,
    *,
    eps: float,
    state: Sequence[Float] | None = None,
) -> tuple[Float, State, Backward]:
    """Run the cell position by position, and differentiate it exactly.

    Returns:
        h, the state after the last position, and a function from dL/dh, and dL/d of that state
        where L depends on it, to dL/d of q, k, v, i, f and of the C, n and m given.
    """
    C, n, m = state if state is not None else zero_state(q, v)
    s = q.shape[-1] ** -0.5
    lf = log_sigmoid(f)
    h = np.empty_like(v)
    trace = []  # per position: the state before it, the gates, the state after it, denominators
    for t in range(q.shape[1]):
        before = (C, n, m)
        m = np.maximum(lf[:, t] + m, i[:, t])
        F = np.exp(lf[:, t] + before[2] - m)
        I = np.exp(i[:, t] - m)  # noqa: E741  the papers' letter
        C = F[..., None, None] * C + I[..., None, None] * k[:, t, :, :, None] * v[:, t, :, None]
        n = F[..., None] * n + I[..., None] * k[:, t]
        num = s * np.einsum("bhk,bhkv->bhv", q[:, t], C)
        den = s * np.einsum("bhk,bhk->bh", q[:, t], n)
        N = np.maximum(np.abs(den), np.exp(-m)) + eps
        h[:, t] = num / N[..., None]
        trace.append((before, F, I, (C, n, m), den, N))

    def backward(dh: Float, d_last: Sequence[Float] | None = None) -> tuple[Float, ...]:
        dq, dk, dv, di, df = (np.zeros_like(x) for x in (q, k, v, i, f))
        dC, dn, dm = d_last if d_last is not None else zero_state(q, v)
        for t in reversed(range(q.shape[1])):
            (C_old, n_old, m_old), F, I, (C_new, n_new, m_new), den, N = trace[t]  # noqa: E741
            q_t, k_t, v_t = q[:, t], k[:, t], v[:, t]
            dnum = dh[:, t] / N[..., None]
            dN = -(dh[:, t] * h[:, t]).sum(-1) / N
            large = np.abs(den) > np.exp(-m_new)
            dden = np.where(large, dN * np.sign(den), 0.0)
            dm = dm - np.where(large, 0.0, dN * np.exp(-m_new))
            dq[:, t] = s * (np.einsum("bhkv,bhv->bhk", C_new, dnum) + dden[..., None] * n_new)
            dC = dC + s * q_t[..., None] * dnum[..., None, :]
            dn = dn + s * q_t * dden[..., None]

            dF = ((dC * C_old).sum((-2, -1)) + (dn * n_old).sum(-1)) * F
            dI = (np.einsum("bhk,bhkv,bhv->bh", k_t, dC, v_t) + (dn * k_t).sum(-1)) * I
            dk[:, t] = I[..., None] * (np.einsum("bhkv,bhv->bhk", dC, v_t) + dn)
            dv[:, t] = I[..., None] * np.einsum("bhk,bhkv->bhv", k_t, dC)
            dm = dm - dF - dI
            decays = lf[:, t] + m_old > i[:, t]  # which of the two m' is
            di[:, t] = dI + np.where(decays, 0.0, dm)
            dm = dF + np.where(decays, dm, 0.0)
            df[:, t] = dm / (1.0 + np.exp(f[:, t]))
            dC = F[..., None, None] * dC
            dn = F[..., None] * dn
        return dq, dk, dv, di, df, dC, dn, dm

    return h, (C, n, m), backward


def parallel(
    q: Float, k: Float, v: Float, i: Float, f: Float, *, eps: float
) -> tuple[Float, Backward]:
    """Compute h in the quadratic form, and differentiate it; equal to `recurrent` but for eps.

    Here m_t is the largest exponent alone, without the 0 that the recurrence starts from.

    Returns:
        h, and a function from dL/dh to dL/d of q, k, v, i and f.
    """
    S, s = q.shape[1], q.shape[-1] ** -0.5
    (k, v, i, f), spoilt = _finite(k, v, i, f)
    q_h, k_h, v_h, i_h, f_h = (x.swapaxes(1, 2) for x in (q, k, v, i, f))  # (B, NH, S, ...)
    b = np.cumsum(log_sigmoid(f_h), -1)
    D = b[..., :, None] - b[..., None, :] + i_h[..., None, :]
    D = np.where(np.tri(S, dtype=bool), D, -np.inf)
    m = D.max(-1)
    E = s * np.exp(D - m[..., None])
    A = E * (q_h @ k_h.swapaxes(-1, -2))
    den, floor = A.sum(-1), np.exp(-m)
    N = np.maximum(np.abs(den), floor) + eps
    h = (A / N[..., None]) @ v_h
    h[spoilt.swapaxes(1, 2)] = np.nan

    def backward(dh: Float) -> tuple[Float, ...]:
        dnum = dh.swapaxes(1, 2) / N[..., None]
        dN = -(dnum * h).sum(-1)
        large = np.abs(den) > floor
        dA = dnum @ v_h.swapaxes(-1, -2) + np.where(large, dN * np.sign(den), 0.0)[..., None]
        X, dD = E * dA, A * dA
        dm = -dD.sum(-1) - np.where(large, 0.0, dN * floor)
        dD += np.where(np.arange(S) == D.argmax(-1)[..., None], dm[..., None], 0.0)
        db = dD.sum(-1) - dD.sum(-2)
        df = db[..., ::-1].cumsum(-1)[..., ::-1] / (1.0 + np.exp(f_h))
        dq, dk, dv = X @ k_h, X.swapaxes(-1, -2) @ q_h, A.swapaxes(-1, -2) @ dnum
        return tuple(x.swapaxes(1, 2) for x in (dq, dk, dv, dD.sum(-2), df))

    return h.swapaxes(1, 2), backward


def chunkwise(
    q: Float,
    k: Float,
    v: Float,
    i: Float,
    f: Float,
    *,
    chunk_size: int,
    eps: float,
    state: Sequence[Float] | None = None,
) -> tuple[Float, State]:
    """Return h and the last state from chunks of `chunk_size`; equal to `recurrent`.

    A shorter last chunk is computed without padding.
    """
    C, n, m = state if state is not None else zero_state(q, v)
    (k, v, i, f), spoilt = _finite(k, v, i, f)
    s = q.shape[-1] ** -0.5
    h = np.empty_like(v)
    for start in range(0, q.shape[1], chunk_size):
        chunk = slice(start, start + chunk_size)
        q_c, k_c, v_c = (x[:, chunk].swapaxes(1, 2) for x in (q, k, v))  # (B, NH, L, D)
        i_c = i[:, chunk].swapaxes(1, 2)
        b = np.cumsum(log_sigmoid(f[:, chunk].swapaxes(1, 2)), -1)
        L = b.shape[-1]
        D = b[..., :, None] - b[..., None, :] + i_c[..., None, :]
        D = np.where(np.tri(L, dtype=bool), D, -np.inf)
        M = np.maximum(b + m[..., None], D.max(-1))
        A = s * (q_c @ k_c.swapaxes(-1, -2)) * np.exp(D - M[..., None])
        w = np.exp(b + m[..., None] - M)
        num = s * w[..., None] * (q_c @ C) + A @ v_c
        den = s * w * np.einsum("bhtk,bhk->bht", q_c, n) + A.sum(-1)
        N = np.maximum(np.abs(den), np.exp(-M)) + eps
        h[:, chunk] = (num / N[..., None]).swapaxes(1, 2)

        g = b[..., -1]
        a = g[..., None] - b + i_c
        m_new = np.maximum(g + m, a.max(-1))
        decay = np.exp(g + m - m_new)
        k_w = np.exp(a - m_new[..., None])[..., None] * k_c
        C = decay[..., None, None] * C + k_w.swapaxes(-1, -2) @ v_c
        n = decay[..., None] * n + k_w.sum(-2)
        m = m_new
    h[spoilt] = np.nan
    for part in (C, n, m):
        part[spoilt[:, -1]] = np.nan
    return h, (C, n, m)
