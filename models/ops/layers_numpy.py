"""Layers of the families in float64 NumPy, with their gradients written by hand; for tests.

A layer returns its result and a function from dL/dresult to dL/dinput, which adds the gradients of
the parameters that it was given by name to `grads`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.ops.mlstm_numpy import Float

Params = Mapping[str, NDArray[Any]]
Grads = dict[str, Float]
Back = Callable[[Float], Float]


def linear(params: Params, name: str, x: Float, grads: Grads) -> tuple[Float, Back]:
    """The linear map `name`, and its bias if the model has one; (..., in) -> (..., out)."""
    w, b = params[f"{name}.weight"], params.get(f"{name}.bias")

    def back(dy: Float) -> Float:
        grads[f"{name}.weight"] = np.einsum("bso,bsi->oi", dy, x)
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


def soft_cap(x: Float, c: float) -> tuple[Float, Back]:
    """Return c * tanh(x / c)."""
    y = c * np.tanh(x / c)
    return y, lambda dy: dy * (1.0 - (y / c) ** 2)


def sigmoid(x: Float) -> Float:
    """Return 1 / (1 + exp(-x))."""
    result: Float = np.exp(-np.logaddexp(0.0, -x))
    return result


def chain(*backs: Back) -> Back:
    """Return the backward function of layers that ran in the given order."""

    def back(dy: Float) -> Float:
        for step in reversed(backs):
            dy = step(dy)
        return dy

    return back
