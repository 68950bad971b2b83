"""How the native kernels are called from MLX: their threads, their arrays, their gradients.

Native code gets NumPy's views of MLX's arrays and never the arrays: on a Mac an array says that it
lies in Metal's memory, which native code refuses, although the CPU can read it.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array
from numpy.typing import NDArray

FAST_GEMM = sys.platform == "linux"
"""MLX multiplies by Accelerate on a Mac, by a slow reference BLAS in its Linux wheels."""

View = NDArray[Any]
"""An array of MLX as native code reads it, or a result that native code has written."""

_threads = 1


def set_threads(count: int) -> None:
    """Set how many threads the native ops of this process use, from 1 on; the default is 1."""
    global _threads
    _threads = count


def threads() -> int:
    """Return how many threads a native op may use."""
    return _threads


def differentiable(
    forward: Callable[..., View | Sequence[View]],
    backward: Callable[[Any, Any, Any], View | Sequence[View | array]],
) -> Callable[..., Any]:
    """Join an op and its gradient into a function of MLX's arrays.

    Args:
        forward: from views of the inputs, as `views` makes them, to one result or several; MLX
            copies them, as it copies all of NumPy's memory.
        backward: from (primals, cotangents, outputs), MLX's arrays that are not evaluated yet, to a
            gradient for each primal; MLX copies those that are NumPy's.
    """
    function = mx.custom_function(lambda *inputs: _copied(forward(*views(*inputs))))
    function.vjp(lambda *known: _copied(backward(*known)))
    result: Callable[..., Any] = function
    return result


def views(*arrays: array) -> list[View]:
    """Evaluate arrays and return row-major views of them; what is row-major is not copied.

    A view keeps its array alive. Views are for reading: MLX may share the memory among arrays.

    Raises:
        TypeError: an array is of a type that NumPy lacks: bfloat16.
    """
    mx.eval(arrays)
    return [_row_major(x) for x in arrays]


def _row_major(x: array) -> View:
    try:
        view: View = np.array(x, copy=False)
    except ValueError as error:
        raise TypeError(f"native operators take float32, got {x.dtype}: {error}") from error
    return view if view.flags.c_contiguous else np.ascontiguousarray(view)


def _copied(results: View | Sequence[View | array]) -> Any:
    """Return results as MLX's arrays; those that are such already are passed on."""
    if isinstance(results, np.ndarray):
        return mx.array(results)
    return tuple(x if isinstance(x, array) else mx.array(x) for x in results)
