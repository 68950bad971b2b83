"""NumPy float64 references of the native operators, forward and backward, from their definitions.

The mLSTM cell is the recurrence of arXiv:2405.04517, step by step and differentiated step by step:
it shares no formula with the chunkwise kernel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def log_sigmoid(x: Array) -> Array:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def rms_norm(x: Array, w: Array, *, eps: float) -> Array:
    return np.asarray(w * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps))


def rms_norm_grad(x: Array, w: Array, d_out: Array, *, eps: float) -> tuple[Array, Array]:
    scale = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    d_unit = d_out * w
    dx = scale * (d_unit - x * scale**2 * (d_unit * x).mean(-1, keepdims=True))
    return dx, (d_out * x * scale).reshape(-1, w.size).sum(0)


def head_norm_gate(h: Array, o: Array, w: Array, *, eps: float) -> Array:
    unit, _ = _layer_norm(h, eps)
    return np.asarray(sigmoid(o) * (w * unit.reshape(o.shape)))


def head_norm_gate_grad(
    h: Array, o: Array, w: Array, d_out: Array, *, eps: float
) -> tuple[Array, Array, Array]:
    unit, scale = _layer_norm(h, eps)
    flat, gate = unit.reshape(o.shape), sigmoid(o)
    d_unit = (d_out * gate * w).reshape(h.shape)
    dot = (d_unit * unit).mean(-1, keepdims=True)
    dh = scale * (d_unit - d_unit.mean(-1, keepdims=True) - unit * dot)
    do = d_out * w * flat * gate * (1 - gate)
    return dh, do, (d_out * gate * flat).reshape(-1, w.size).sum(0)


def _layer_norm(h: Array, eps: float) -> tuple[Array, Array]:
    scale = 1 / np.sqrt(h.var(-1, keepdims=True) + eps)
    return (h - h.mean(-1, keepdims=True)) * scale, scale


def swiglu(gate: Array, up: Array) -> Array:
    return np.asarray(gate * sigmoid(gate) * up)


def swiglu_grad(gate: Array, up: Array, d_out: Array) -> tuple[Array, Array]:
    s = sigmoid(gate)
    return d_out * up * s * (1 + gate * (1 - s)), d_out * gate * s


def soft_cap(x: Array, *, cap: float) -> Array:
    return np.asarray(cap * np.tanh(x / cap))


def soft_cap_grad(x: Array, d_out: Array, *, cap: float) -> Array:
    return np.asarray(d_out / np.cosh(x / cap) ** 2)


def capped_cross_entropy(
    logits: Array, labels: Array, *, cap: float | None
) -> tuple[float, int, Array]:
    """Sum of nats, count of labels other than -100, gradient of the sum."""
    capped = logits if cap is None else soft_cap(logits, cap=cap)
    top = capped.max(-1, keepdims=True)
    weights = np.exp(capped - top)
    total = weights.sum(-1, keepdims=True)
    rows = np.flatnonzero(labels != -100)
    nats = (np.log(total) + top)[rows, 0] - capped[rows, labels[rows]]
    gradient = weights / total
    gradient[rows, labels[rows]] -= 1
    if cap is not None:
        gradient *= 1 - (capped / cap) ** 2
    gradient[labels == -100] = 0
    return float(nats.sum()), rows.size, gradient


def mlstm(
    q: Array, k: Array, v: Array, i: Array, f: Array, C: Array, n: Array, m: Array, *, eps: float
) -> tuple[Array, Array, Array, Array]:
    """h and the last state; q, k (B, S, NH, DK), v (B, S, NH, DV), i, f (B, S, NH)."""
    h = np.empty(v.shape)
    for t in range(q.shape[1]):
        C, n, m, h[:, t], *_ = _step(q, k, v, i, f, C, n, m, eps, t)
    return h, C, n, m


def _step(
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    C: Array,
    n: Array,
    m: Array,
    eps: float,
    t: int,
) -> tuple[Array, ...]:
    lf = log_sigmoid(f[:, t])
    m_new = np.maximum(lf + m, i[:, t])
    keep, write = np.exp(lf + m - m_new), np.exp(i[:, t] - m_new)
    C = (
        keep[..., None, None] * C
        + write[..., None, None] * k[:, t, :, :, None] * v[:, t, :, None, :]
    )
    n = keep[..., None] * n + write[..., None] * k[:, t]
    num = np.einsum("bhk,bhkv->bhv", q[:, t], C) * q.shape[-1] ** -0.5
    den = np.einsum("bhk,bhk->bh", q[:, t], n) * q.shape[-1] ** -0.5
    floor = np.exp(-m_new)
    divisor = np.maximum(np.abs(den), floor) + eps
    return C, n, m_new, num / divisor[..., None], den, floor, divisor, keep, write


def mlstm_grad(
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    C: Array,
    n: Array,
    m: Array,
    dh: Array,
    dC: Array,
    dn: Array,
    *,
    eps: float,
) -> tuple[Array, ...]:
    """dq, dk, dv, di, df and the initial state's dC, dn, with the stabiliser m constant."""
    scale = q.shape[-1] ** -0.5
    states, steps = [(C, n, m)], []
    for t in range(q.shape[1]):
        C, n, m, *rest = _step(q, k, v, i, f, *states[-1], eps, t)
        states.append((C, n, m))
        steps.append(rest)
    dq, dk, dv, di, df = (np.zeros(x.shape) for x in (q, k, v, i, f))
    for t in reversed(range(q.shape[1])):
        C, n, _ = states[t + 1]
        C_before, n_before, _ = states[t]
        h, den, floor, divisor, keep, write = steps[t]
        u = dh[:, t] / divisor[..., None]
        e = np.where(np.abs(den) > floor, -np.sign(den) * (dh[:, t] * h).sum(-1) / divisor, 0)
        dq[:, t] = scale * (np.einsum("bhkv,bhv->bhk", C, u) + n * e[..., None])
        dC = dC + scale * q[:, t, :, :, None] * u[:, :, None, :]
        dn = dn + scale * q[:, t] * e[..., None]
        d_key = np.einsum("bhkv,bhv->bhk", dC, v[:, t]) + dn
        dk[:, t] = write[..., None] * d_key
        dv[:, t] = write[..., None] * np.einsum("bhk,bhkv->bhv", k[:, t], dC)
        di[:, t] = write * (k[:, t] * d_key).sum(-1)
        d_keep = (C_before * dC).sum((-1, -2)) + (n_before * dn).sum(-1)
        df[:, t] = keep * d_keep * sigmoid(-f[:, t])
        dC, dn = keep[..., None, None] * dC, keep[..., None] * dn
    return dq, dk, dv, di, df, dC, dn
