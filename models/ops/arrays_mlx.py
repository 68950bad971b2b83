"""The array functions of `arrays.py` in MLX, whose arrays lie on no device of their own."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import abs as abs
from mlx.core import array
from mlx.core import broadcast_to as broadcast_to
from mlx.core import cummin as cummin
from mlx.core import cumsum as cumsum
from mlx.core import diagonal as diagonal
from mlx.core import einsum as einsum
from mlx.core import exp as exp
from mlx.core import logsumexp as logsumexp
from mlx.core import maximum as maximum
from mlx.core import minimum as minimum
from mlx.core import moveaxis as moveaxis
from mlx.core import ones_like as ones_like
from mlx.core import repeat as repeat
from mlx.core import sigmoid as sigmoid
from mlx.core import sin as sin
from mlx.core import sort as sort
from mlx.core import stack as stack
from mlx.core import stop_gradient as stop_gradient
from mlx.core import take_along_axis as take_along_axis
from mlx.core import tanh as tanh
from mlx.core import tile as tile
from mlx.core import tril as tril
from mlx.core import triu as triu
from mlx.core import where as where
from mlx.core import zeros_like as zeros_like
from mlx.core.fft import irfft as irfft
from mlx.core.fft import rfft as rfft
from numpy.typing import NDArray

from mlxhog.models.ops.arrays import DType
from mlxhog.models.ops.reference.quantized_mlx import Quantized

framework = "mlx"
_DTYPES = {"float32": mx.float32, "int32": mx.int32}


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
    return -mx.logaddexp(-x, 0)


def softmax(x: array, axis: int = -1) -> array:
    return mx.softmax(x, axis)


def linear(x: array, w: array, b: array | None = None) -> array:
    """Return x W^T + b."""
    y = x @ w.T
    return y if b is None else y + b


def concatenate(parts: Sequence[array], axis: int = 0) -> array:
    return mx.concatenate(list(parts), axis)


def unstack(x: array, axis: int = 0) -> Sequence[array]:
    return mx.unstack(x, axis=axis)


def split(x: array, parts: int, axis: int = 0) -> Sequence[array]:
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
