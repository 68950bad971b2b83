"""The convolution as long as the sequence as a native CPU kernel behind `mx.custom_function`.

`kernels.py` says what it promises; `reference/long_conv_mlx.py`, by transforms, computes the
sequences that are too long for the kernel. float32 only; `ops_mlx.py` says what holds for all
native ops.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops.native.call_mlx import View, differentiable, threads, views
from mlxhog.models.ops.reference import long_conv_mlx as by_transform


def long_conv(x: array, f: array) -> array:
    """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S."""
    if x.shape[1] > ops.LONG_CONV_DIRECT:
        return by_transform.long_conv(x, f)
    result: array = _long_conv()(x, f)
    return result


@lru_cache
def _long_conv() -> Callable[..., Any]:
    def forward(x: View, f: View) -> View:
        y = ops.empty(x.shape)
        ops.long_conv(x, f, y, threads=threads())
        return y

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        x, f, dy = views(*primals, cotangent)
        dx, df = ops.empty(x.shape), ops.empty(f.shape)
        ops.long_conv_grad(x, f, dy, dx, df, threads=threads())
        return dx, df

    return differentiable(forward, backward)
