"""What an engine needs of MLX itself; see `Framework` in `engines.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import numpy as np

from mlxhog.models.ops.native import adapter_mlx as native_mlx
from mlxhog.parity.subject import Array


def start(device: str, threads: int) -> None:
    """Set the device of all arrays, and the threads of the native operators."""
    mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
    native_mlx.set_threads(threads)


def array(x: Array, device: str) -> mx.array:
    """Return a copy of x."""
    return mx.array(x)


indices = array


def host(x: mx.array) -> Array:
    """Return a copy of an array as a contiguous NumPy array of the same shape."""
    return np.array(x, order="C")


def without_gradient() -> AbstractContextManager[Any]:
    """Do nothing: MLX keeps something for gradients only where they are asked for."""
    return nullcontext()


def evaluate(*arrays: Any) -> None:
    """Compute what has been put off."""
    mx.eval(*arrays)


def leaves(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return the arrays: MLX differentiates functions."""
    return dict(arrays)


def value_and_grad(
    function: Callable[[Mapping[str, mx.array]], mx.array], arrays: Mapping[str, mx.array]
) -> tuple[mx.array, dict[str, mx.array]]:
    """Return a scalar function of arrays, and its gradient by each."""
    value, grads = mx.value_and_grad(function)(dict(arrays))
    mx.eval(value, grads)
    return value, grads


def stop_gradient(x: mx.array) -> mx.array:
    """Return x as a constant."""
    return mx.stop_gradient(x)
