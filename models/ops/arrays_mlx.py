"""The array functions of `arrays.py` in MLX, whose arrays lie on no device of their own.

Those that are not defined here are MLX's own.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.core import array
from mlx.core.fft import irfft as irfft
from mlx.core.fft import rfft as rfft
from numpy.typing import NDArray

from mlxhog.models.ops.arrays import DType
from mlxhog.models.ops.reference.quantized_mlx import Quantized

framework = "mlx"
differentiable = ContextVar("differentiable", default=True)
"""Whether a gradient may follow; a function with a gradient of its own takes longer to call."""

_DTYPES = {"float32": mx.float32, "int32": mx.int32}
_MOST_PARTS = 10  # that `mx.split` cuts in one operation


def __getattr__(name: str) -> Any:
    """Return a function that is MLX's own."""
    return globals().setdefault(name, getattr(mx, name))


def zeros(shape: Sequence[int], dtype: DType = "float32", *, like: array | None = None) -> array:
    """Return zeros."""
    return mx.zeros(shape, _DTYPES[dtype])


def full(
    shape: Sequence[int], value: float, dtype: DType = "float32", *, like: array | None = None
) -> array:
    """Return one value everywhere."""
    return mx.full(shape, value, _DTYPES[dtype])


def full_like(x: array, value: float) -> array:
    """Return one value everywhere, of the shape and type of x."""
    return mx.full(x.shape, value, x.dtype)


def arange(start: int, stop: int, *, like: array | None = None) -> array:
    """Return the integers from `start` to below `stop`, int32."""
    return mx.arange(start, stop)


def from_numpy(x: NDArray[Any], *, like: array | None = None) -> array:
    """Return a copy of x; float64 becomes float32."""
    return mx.array(x.astype(np.float32) if x.dtype == np.float64 else x)


def float32(x: array) -> array:
    return x.astype(mx.float32)


def int32(x: array) -> array:
    return x.astype(mx.int32)


def bfloat16(x: array) -> array:
    return x.astype(mx.bfloat16)


def astype(x: array, like: array) -> array:
    return x.astype(like.dtype)


def log_sigmoid(x: array) -> array:
    return cast(array, _log_sigmoid(x)) if differentiable.get() else -mx.logaddexp(-x, 0)


@mx.custom_function
def _log_sigmoid(x: array) -> array:
    """Return log(sigmoid(x)); a gradient in one expression is one kernel, MLX's own is two."""
    return -mx.logaddexp(-x, 0)


@_log_sigmoid.vjp
def _log_sigmoid_gradient(x: array, dy: array, _: array) -> array:
    return dy * mx.sigmoid(0 - x)  # -x of before would be kept as an array of its own


def with_gradient(x: array, gradient: Callable[..., array], *constants: array) -> array:
    if not differentiable.get():
        return x

    @mx.custom_function
    def identity(x: array, *constants: array) -> array:
        return x

    @identity.vjp
    def _(inputs: Sequence[array], dy: array, __: array) -> tuple[array, ...]:
        _, *constants = inputs
        return gradient(dy, *constants), *(mx.zeros_like(part) for part in constants)

    # In `mx.compile` MLX 0.32 fails on a broadcast product that a gradient uses, too, unless
    # another node, which copies nothing, is between them.
    return cast(array, identity(x, *map(mx.contiguous, constants)))


def amax(x: array, axis: int) -> array:
    return mx.max(x, axis)


def softmax(x: array, axis: int = -1) -> array:
    return mx.softmax(x, axis)


def linear(x: array, w: array, b: array | None = None) -> array:
    if b is not None and w.ndim == 2 and differentiable.get():
        return cast(array, _affine(x, w, b))
    y = cast(array, _product(x, w)) if differentiable.get() else x @ w.swapaxes(-1, -2)
    return y if b is None else y + b


@mx.custom_function
def _product(x: array, w: array) -> array:
    """Return x W^T; MLX's own gradient would be a transposed view, which NumPy copies slowly."""
    return x @ w.swapaxes(-1, -2)


@mx.custom_function
def _affine(x: array, w: array, b: array) -> array:
    """Return x W^T + b by one kernel."""
    return mx.addmm(b, x.reshape(-1, x.shape[-1]), w.T).reshape(*x.shape[:-1], -1)


@_affine.vjp
def _affine_gradients(
    xwb: tuple[array, array, array], dy: array, y: array
) -> tuple[array, array, array]:
    x, w, b = xwb
    return *_product_gradients((x, w), dy, y), dy.reshape(-1, dy.shape[-1]).sum(0)


def _product_gradients(xw: tuple[array, array], dy: array, _: array) -> tuple[array, array]:
    x, w = xw
    dx = dy @ w
    if w.ndim == 2:  # for all rows of x at once
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dx, dy.swapaxes(-1, -2) @ x


_product.vjp(_product_gradients)


def concatenate(parts: Sequence[array], axis: int = 0) -> array:
    return mx.concatenate(list(parts), axis)


def unstack(x: array, axis: int = 0) -> Sequence[array]:
    """Return the entries of x along an axis, without that axis, as views.

    Each of more than `_MOST_PARTS` entries would be a slice, whose gradient is an array of the size
    of x. So they are cut off in rounds, whose gradient is one concatenation each.
    """
    return [entry.squeeze(axis) for entry in _entries(x, axis)]


def _entries(x: array, axis: int) -> list[array]:
    width = 1
    while x.shape[axis] > _MOST_PARTS * width:
        width *= _MOST_PARTS
    parts = mx.split(x, list(range(width, x.shape[axis], width)), axis)
    return (
        list(parts) if width == 1 else [entry for part in parts for entry in _entries(part, axis)]
    )


def split(x: array, parts: int | Sequence[int], axis: int = 0) -> Sequence[array]:
    return list(mx.split(x, parts, axis))


def halves(w: array | Quantized) -> Sequence[Any]:
    return w.halves() if isinstance(w, Quantized) else list(mx.split(w, 2))


def permute(x: array, axes: Sequence[int]) -> array:
    return x.transpose(*axes)


def pad(x: array, widths: Sequence[tuple[int, int]], value: float = 0.0) -> array:
    return mx.pad(x, list(widths), constant_values=value)


def take(x: array, rows: Sequence[int]) -> array:
    return x[mx.array(list(rows))]


def embedding(table: array, tokens: array) -> array:
    return table[tokens]
