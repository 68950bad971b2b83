"""The kernels of `slstm.h` in NumPy, computed in float64; layouts as there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def slstm_forward(
    *,
    G: Array,
    R: Array,
    bias: Array,
    h0: Array,
    c0: Array,
    n0: Array,
    m0: Array,
    starts: Array,
    h: Array,
    c: Array,
    n: Array,
    m: Array,
    **_: Any,
) -> None:
    """Run the cell step by step, and keep the state after every step."""
    G, R, bias, *now = _float64(G, R, bias, h0, c0, n0, m0)
    for t in range(G.shape[1]):
        h_now, c_now, n_now, m_now = (_unless(starts[:, t], x) for x in now)
        i, f, z, o = _gates(G, R, bias, h_now, t)
        lf = m_now - np.logaddexp(0.0, -f)
        m_now = np.where(n_now == 0, i, np.maximum(i, lf))
        I, F = _weights(i, lf, m_now)  # noqa: E741  the papers' letter
        c_now = F * c_now + I * np.tanh(z)
        n_now = F * n_now + I
        now = [_sigmoid(o) * c_now / n_now, c_now, n_now, m_now]
        h[:, t], c[:, t], n[:, t], m[:, t] = now


def slstm_backward(
    *,
    G: Array,
    R: Array,
    bias: Array,
    h0: Array,
    c0: Array,
    n0: Array,
    m0: Array,
    starts: Array,
    h: Array,
    c: Array,
    n: Array,
    m: Array,
    dh: Array,
    dc_last: Array,
    dn_last: Array,
    dm_last: Array,
    dG: Array,
    dh0: Array,
    dc0: Array,
    dn0: Array,
    dm0: Array,
    **_: Any,
) -> None:
    """Differentiate the cell step by step."""
    G, R, bias, dh, dc, dn, dm = _float64(G, R, bias, dh, dc_last, dn_last, dm_last)
    h, c, n, m = (_with_start(*_float64(x0, x)) for x0, x in ((h0, h), (c0, c), (n0, n), (m0, m)))
    dh_through, free = np.zeros_like(dc), dm - dc * c[:, -1] - dn * n[:, -1]
    for t in reversed(range(G.shape[1])):
        h_old, c_old, n_old, m_old = (_unless(starts[:, t], x[:, t]) for x in (h, c, n, m))
        i, f, z, o = _gates(G, R, bias, h_old, t)
        lf = m_old - np.logaddexp(0.0, -f)
        by_input = (n_old == 0) | (i >= lf)  # m' = i
        I, F = _weights(i, lf, m[:, t + 1])  # noqa: E741
        z, o = np.tanh(z), _sigmoid(o)
        ratio = c[:, t + 1] / n[:, t + 1]
        dh_now = dh[:, t] + dh_through
        dratio = dh_now * o / n[:, t + 1]
        dc = dc + dratio
        dn = dn - dratio * ratio
        d_pre = np.stack(
            [
                (dc * z + dn) * I + np.where(by_input, free, 0.0),
                ((dc * c_old + dn * n_old) * F + np.where(by_input, 0.0, free)) * _sigmoid(-f),
                dc * I * (1.0 - z * z),
                dh_now * ratio * o * (1.0 - o),
            ],
            1,
        )
        dG[:, t] = d_pre
        dh_through = np.einsum("ngej,bgne->bnj", R, d_pre)
        before = (dh_through, dc * F, dn * F, np.where(by_input, 0.0, free))
        dh_through, dc, dn, free = (_unless(starts[:, t], x) for x in before)
    dh0[...], dc0[...], dn0[...] = dh_through, dc, dn
    dm0[...] = free + dc * c0 + dn * n0


def _unless(starts: Array, state: Array) -> Array:
    """The state (B, NH, DH), or 0 where a document starts."""
    result: Array = np.where(starts[:, None, None] != 0, 0.0, state)
    return result


def _float64(*arrays: Array) -> list[Array]:
    return [np.asarray(x, np.float64) for x in arrays]


def _with_start(start: Array, steps: Array) -> Array:
    """The state before every step, and after the last: (B, S + 1, NH, DH)."""
    return np.concatenate([start[:, None], steps], 1)


def _gates(G: Array, R: Array, bias: Array, h: Array, t: int) -> Array:
    """Pre-activations (4, B, NH, DH) of step t from the h before it."""
    total: Array = G[:, t] + np.einsum("ngej,bnj->bgne", R, h) + bias
    return total.swapaxes(0, 1)


def _weights(i: Array, lf: Array, m: Array) -> tuple[Array, Array]:
    return np.exp(np.minimum(i - m, 0.0)), np.exp(np.minimum(lf - m, 0.0))


def _sigmoid(x: Array) -> Array:
    result: Array = np.exp(-np.logaddexp(0.0, -x))
    return result
