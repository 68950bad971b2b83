"""NumPy float64 references of the native operators and their gradients, from the definitions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(x):
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def log_sigmoid(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def rms_norm(x, w, *, eps):
    return np.asarray(w * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps))


def rms_norm_grad(x, w, d_out, *, eps):
    scale = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    d_unit = d_out * w
    dx = scale * (d_unit - x * scale**2 * (d_unit * x).mean(-1, keepdims=True))
    return dx, (d_out * x * scale).reshape(-1, w.size).sum(0)


def head_norm_gate(h, o, w, *, eps):
    unit, _ = _layer_norm(h, eps)
    return np.asarray(sigmoid(o) * (w * unit.reshape(o.shape)))


def head_norm_gate_grad(h, o, w, d_out, *, eps):
    unit, scale = _layer_norm(h, eps)
    flat, gate = unit.reshape(o.shape), sigmoid(o)
    d_unit = (d_out * gate * w).reshape(h.shape)
    dot = (d_unit * unit).mean(-1, keepdims=True)
    dh = scale * (d_unit - d_unit.mean(-1, keepdims=True) - unit * dot)
    do = d_out * w * flat * gate * (1 - gate)
    return dh, do, (d_out * gate * flat).reshape(-1, w.size).sum(0)


def _layer_norm(h, eps):
    scale = 1 / np.sqrt(h.var(-1, keepdims=True) + eps)
    return (h - h.mean(-1, keepdims=True)) * scale, scale


def swiglu(gate, up):
    return np.asarray(gate * sigmoid(gate) * up)


def swiglu_grad(gate, up, d_out):
    s = sigmoid(gate)
    return d_out * up * s * (1 + gate * (1 - s)), d_out * gate * s


def soft_cap(x, *, cap):
    return np.asarray(cap * np.tanh(x / cap))


def soft_cap_grad(x, d_out, *, cap):
    return np.asarray(d_out / np.cosh(x / cap) ** 2)


def capped_cross_entropy(logits, labels, *, cap):
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
