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
    fresh: int,
    h: Array,
    c: Array,
    n: Array,
    m: Array,
    **_: Any,
) -> None:
    """Run the cell step by step, and keep the state after every step."""
    G, R, bias, h_now, c_now, n_now, m_now = _float64(G, R, bias, h0, c0, n0, m0)
    for t in range(G.shape[1]):
        i, f, z, o = _gates(G, R, bias, h_now, t)
        lf = m_now - np.logaddexp(0.0, -f)
        m_now = i if t == 0 and fresh else np.maximum(i, lf)
        I, F = _weights(i, lf, m_now)  # noqa: E741  the papers' letter
        c_now = F * c_now + I * np.tanh(z)
        n_now = F * n_now + I
        h_now = _sigmoid(o) * c_now / n_now
        h[:, t], c[:, t], n[:, t], m[:, t] = h_now, c_now, n_now, m_now


def slstm_backward(
    *,
    G: Array,
    R: Array,
    bias: Array,
    h0: Array,
    c0: Array,
    n0: Array,
    m0: Array,
    h: Array,
    c: Array,
    n: Array,
    m: Array,
    dh: Array,
    dc_last: Array,
    dn_last: Array,
    dG: Array,
    dh0: Array,
    dc0: Array,
    dn0: Array,
    **_: Any,
) -> None:
    """Differentiate the cell step by step; m is constant."""
    G, R, bias, dh, dc, dn = _float64(G, R, bias, dh, dc_last, dn_last)
    h, c, n, m = (_with_start(*_float64(x0, x)) for x0, x in ((h0, h), (c0, c), (n0, n), (m0, m)))
    dh_through = np.zeros_like(dc)
    for t in reversed(range(G.shape[1])):
        i, f, z, o = _gates(G, R, bias, h[:, t], t)
        I, F = _weights(i, m[:, t] - np.logaddexp(0.0, -f), m[:, t + 1])  # noqa: E741
        z, o = np.tanh(z), _sigmoid(o)
        ratio = c[:, t + 1] / n[:, t + 1]
        dh_now = dh[:, t] + dh_through
        dratio = dh_now * o / n[:, t + 1]
        dc = dc + dratio
        dn = dn - dratio * ratio
        d_pre = np.stack(
            [
                (dc * z + dn) * I,
                (dc * c[:, t] + dn * n[:, t]) * F * _sigmoid(-f),
                dc * I * (1.0 - z * z),
                dh_now * ratio * o * (1.0 - o),
            ],
            1,
        )
        dG[:, t] = d_pre
        dc, dn = dc * F, dn * F
        dh_through = np.einsum("gnej,bgne->bnj", R, d_pre)
    dh0[...], dc0[...], dn0[...] = dh_through, dc, dn


def _float64(*arrays: Array) -> list[Array]:
    return [np.asarray(x, np.float64) for x in arrays]


def _with_start(start: Array, steps: Array) -> Array:
    """The state before every step, and after the last: (B, S + 1, NH, DH)."""
    return np.concatenate([start[:, None], steps], 1)


def _gates(G: Array, R: Array, bias: Array, h: Array, t: int) -> Array:
    """Pre-activations (4, B, NH, DH) of step t from the h before it."""
    total: Array = G[:, t] + np.einsum("gnej,bnj->bgne", R, h) + bias
    return total.swapaxes(0, 1)


def _weights(i: Array, lf: Array, m: Array) -> tuple[Array, Array]:
    return np.exp(np.minimum(i - m, 0.0)), np.exp(np.minimum(lf - m, 0.0))


def _sigmoid(x: Array) -> Array:
    result: Array = np.exp(-np.logaddexp(0.0, -x))
    return result
