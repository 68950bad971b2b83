"""Layers of the families in float64 NumPy; those of xLSTM with gradients written by hand.

A layer with parameters given by name returns its result and a function from dL/dresult to
dL/dinput, which adds the gradients of the parameters to `grads`. A layer of arrays alone returns a
function to the gradients of all of them, in their order.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.ops.operators import activation_name
from mlxhog.models.ops.reference.mlstm_numpy import Float

Params = Mapping[str, NDArray[Any]]
Grads = dict[str, Float]
Back = Callable[[Float], Float]


def linear(params: Params, name: str, x: Float, grads: Grads) -> tuple[Float, Back]:
    """The linear map `name`, and its bias if the model has one; (..., in) -> (..., out)."""
    w, b = params[f"{name}.weight"], params.get(f"{name}.bias")

    def back(dy: Float) -> Float:
        grads[f"{name}.weight"] = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        if b is not None:
            grads[f"{name}.bias"] = dy.sum((0, 1))
        return dy @ w

    return x @ w.T if b is None else x @ w.T + b, back


def layer_norm(h: Float, eps: float) -> tuple[Float, Back]:
    """LayerNorm over the last axis, without scale or bias."""
    centred = h - h.mean(-1, keepdims=True)
    inverse = 1.0 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    unit = centred * inverse

    def back(dy: Float) -> Float:
        mean = dy.mean(-1, keepdims=True)
        dh: Float = inverse * (dy - mean - unit * (dy * unit).mean(-1, keepdims=True))
        return dh

    return unit, back


def rms_norm(x: Float, w: Float, eps: float) -> Float:
    """Return w * x / sqrt(mean(x^2) + eps) over the last axis; no gradient."""
    normed: Float = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return w * normed


def head_norm_skip_gate(
    h: Float, c: Float, z: Float, w: Float, skip: Float, eps: float
) -> tuple[Float, Callable[[Float], tuple[Float, Float, Float, Float, Float]]]:
    """Return (w * LayerNorm(h) + skip * c) * silu(z); h (B, S, NH, DV), c and z (B, S, NH * DV)."""
    normed, back_norm = layer_norm(h, eps)
    normed = normed.reshape(z.shape)
    mixed = w * normed + skip * c
    gate, slope = activation("silu", z)

    def back(dy: Float) -> tuple[Float, Float, Float, Float, Float]:
        dmixed = dy * gate
        dh = back_norm((dmixed * w).reshape(h.shape))
        dw, dskip = (dmixed * normed).sum((0, 1)), (dmixed * c).sum((0, 1))
        return dh, dmixed * skip, dy * mixed * slope, dw, dskip

    return mixed * gate, back


def causal_conv(
    x: Float,
    w: Float,
    b: Float,
    *,
    state: Float | None = None,
    starts: NDArray[Any] | None = None,
    silu: bool,
) -> tuple[Float, Float, Callable[[Float, Float | None], tuple[Float, Float, Float, Float]]]:
    """Convolve causally, channel by channel; arguments as in `operators.py`.

    Returns:
        y, the state after the last position, and a function from their gradients (None is all
        zeros) to those of x, w, b and the state before the first position.
    """
    B, S, C = x.shape
    K = w.shape[-1]
    past = np.zeros((B, K - 1, C)) if state is None else state
    inputs = np.concatenate([past, x], 1)
    # Whether position t may use the input `ahead` positions before it: (B, S, K) by ahead.
    reaches = np.ones((B, S, K), bool)
    for ahead in range(1, K):
        reaches[:, :, ahead] = reaches[:, :, ahead - 1]
        if starts is not None:
            is_start = np.asarray(starts, bool)[:, : max(0, S - ahead + 1)]
            reaches[:, ahead - 1 :, ahead] &= ~is_start
    first = K - 1  # of the inputs, the one of position 0
    pre = np.broadcast_to(b, x.shape).copy()
    for ahead in range(K):
        inputs_met = inputs[:, first - ahead : first - ahead + S]
        pre += np.where(reaches[:, :, ahead, None], w[:, 0, K - 1 - ahead] * inputs_met, 0.0)
    in_document = reaches[:, -1, : K - 1][:, ::-1, None]
    y, slope = activation("silu", pre) if silu else (pre, np.ones_like(pre))

    def back(dy: Float, dlast: Float | None = None) -> tuple[Float, Float, Float, Float]:
        dpre = dy * slope
        dinputs, dw = np.zeros_like(inputs), np.zeros_like(w)
        if dlast is not None:
            dinputs[:, S:] += np.where(in_document, dlast, 0.0)
        for ahead in range(K):
            inputs_met = slice(first - ahead, first - ahead + S)
            d_reaching = np.where(reaches[:, :, ahead, None], dpre, 0.0)
            dinputs[:, inputs_met] += w[:, 0, K - 1 - ahead] * d_reaching
            dw[:, 0, K - 1 - ahead] = (d_reaching * inputs[:, inputs_met]).sum((0, 1))
        return dinputs[:, first:], dw, dpre.sum((0, 1)), dinputs[:, :first]

    return y, np.where(in_document, inputs[:, S:], 0.0), back


def long_conv(x: Float, f: Float) -> Float:
    """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S; no gradient."""
    y = np.empty(x.shape)
    for t in range(x.shape[1]):
        y[:, t] = np.einsum("bjc,cj->bc", x[:, t::-1], f[:, : t + 1])
    return y


def block_diagonal(
    x: Float, w: Float, b: Float | None = None
) -> tuple[Float, Callable[[Float], tuple[Float, Float, Float]]]:
    """Return y of slices y_g = x_g W_g^T (+ b); x (B, S, in), w (G, out / G, in / G)."""
    slices = x.reshape(*x.shape[:2], w.shape[0], w.shape[2])
    y = np.einsum("bsgi,goi->bsgo", slices, w).reshape(*x.shape[:2], -1)

    def back(dy: Float) -> tuple[Float, Float, Float]:
        dslices = dy.reshape(*x.shape[:2], *w.shape[:2])
        dx = np.einsum("bsgo,goi->bsgi", dslices, w).reshape(x.shape)
        return dx, np.einsum("bsgo,bsgi->goi", dslices, slices), dy.sum((0, 1))

    return y if b is None else y + b, back


def glu(gate: Float, up: Float, name: str) -> tuple[Float, Callable[[Float], tuple[Float, Float]]]:
    """Return act(gate) * up."""
    y, slope = activation(name, gate)
    return y * up, lambda dy: (dy * up * slope, dy * y)


def activation(name: str, x: Float) -> tuple[Float, Float]:
    """Return act(x) and act'(x), for a name of `operators.ACTIVATIONS`."""
    s = sigmoid(x)
    match activation_name(name):
        case "gelu":
            area = 0.5 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2.0))
            return x * area, area + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
        case "gelu_tanh":
            rate = 2.0 * math.sqrt(2.0 / math.pi)
            s = sigmoid(rate * (x + 0.044715 * x**3))
            return x * s, s + x * s * (1.0 - s) * rate * (1.0 + 3.0 * 0.044715 * x * x)
        case "silu":
            return x * s, s * (1.0 + x * (1.0 - s))
        case "relu":
            return np.maximum(x, 0.0), (x > 0).astype(np.float64)
        case "relu^2":
            return np.maximum(x, 0.0) ** 2, 2.0 * np.maximum(x, 0.0)
        case "sigmoid":
            return s, s * (1.0 - s)
        case "softplus":
            return softplus(x), s
        case _:  # selu, Klambauer et al. 2017, arXiv:1706.02515
            scale, alpha = 1.0507009873554805, 1.6732632423543772
            below = alpha * np.exp(np.minimum(x, 0.0))
            y = scale * np.where(x > 0, x, below - alpha)
            return y, scale * np.where(x > 0, 1.0, below)


def soft_cap(x: Float, c: float) -> tuple[Float, Back]:
    """Return c * tanh(x / c)."""
    y = c * np.tanh(x / c)
    return y, lambda dy: dy * (1.0 - (y / c) ** 2)


def sigmoid(x: Float) -> Float:
    """Return 1 / (1 + exp(-x))."""
    result: Float = np.exp(-np.logaddexp(0.0, -x))
    return result


def softplus(x: Float) -> Float:
    """Return log(1 + exp(x))."""
    result: Float = np.logaddexp(0.0, x)
    return result


def silu(x: Float) -> Float:
    """Return x * sigmoid(x)."""
    return x * sigmoid(x)


def chain(*backs: Back) -> Back:
    """Return the backward function of layers that ran in the given order."""

    def back(dy: Float) -> Float:
        for step in reversed(backs):
            dy = step(dy)
        return dy

    return back


def rope(x: Float, base: float, offset: NDArray[np.integer] | None = None) -> Float:
    """Turn pair i of every head of x (B, S, NH, DH) as a complex number."""
    B, S, _, DH = x.shape
    first = np.zeros(B) if offset is None else offset
    t = first[:, None, None, None] + np.arange(S)[:, None, None]
    turn = np.exp(1j * t * base ** (-2 * np.arange(DH // 2) / DH))
    pairs = (x[..., : DH // 2] + 1j * x[..., DH // 2 :]) * turn
    return np.concatenate([pairs.real, pairs.imag], -1)


def attention(
    q: Float,
    k: Float,
    v: Float,
    *,
    window: int | None = None,
    lengths: NDArray[np.integer] | None = None,
) -> Float:
    """Attend from q (B, S, NH, DH) to k, v (B, L, NH, DH), position by position."""
    B, S, NH, DH = q.shape
    L = k.shape[1]
    h = np.empty(q.shape)
    for b in range(B):
        oldest = 0 if lengths is None else L - int(lengths[b])
        for t in range(L - S, L):
            first = oldest if window is None else max(oldest, t - window)
            for n in range(NH):
                scores = k[b, first : t + 1, n] @ q[b, t - L + S, n] / np.sqrt(DH)
                weights = np.exp(scores - scores.max())
                h[b, t - L + S, n] = weights @ v[b, first : t + 1, n] / weights.sum()
    return h
