"""How the native kernels are called from MLX: their threads, their arrays, their gradients."""

import sys
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
from mlx.core import array

FAST_GEMM = sys.platform == "linux"
"""MLX multiplies by Accelerate on a Mac, by a slow reference BLAS in its Linux wheels."""

_threads = 1


def set_threads(count: int) -> None:
    """Set how many threads the native ops of this process use, from 1 on; the default is 1."""
    global _threads
    _threads = count


def threads() -> int:
    """Return how many threads a native op may use."""
    return _threads


def differentiable(
    forward: Callable[..., Any], backward: Callable[[Any, Any, Any], Any]
) -> Callable[..., Any]:
    """Join an op and its gradient; `backward` gets (primals, cotangents, outputs)."""
    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result


def ready(*arrays: array) -> list[array]:
    """Evaluate arrays and make them row-major, as the kernels read them through the buffer."""
    mx.eval(arrays)
    # MLX has the buffer protocol, its stubs do not say so.
    row_major = [x if memoryview(cast(Any, x)).c_contiguous else mx.contiguous(x) for x in arrays]
    mx.eval(row_major)
    return row_major
