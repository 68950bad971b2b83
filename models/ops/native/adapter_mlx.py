"""The native operators behind `mx.custom_function`: conversion of MLX's arrays for a custom op.

An operator evaluates its inputs when it is called, so it cannot be used in `mx.compile`. MLX has no
uninitialized arrays: a result is computed into a NumPy array, and copied to MLX while it is still
in the cache.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.eager.ops_mlx import MLXOps
from mlxhog.models.ops.native.custom_ops import SLSTM_RECOMPUTED, CustomOp, View, Views
from mlxhog.models.ops.native.operators import NativeOps

FAST_GEMM = sys.platform == "linux"
"""MLX multiplies by Accelerate on a Mac, by a slow reference BLAS in its Linux wheels."""

_threads = 1


def set_threads(count: int) -> None:
    """Set the number of threads of the native ops of this process, >= 1; the default is 1."""
    global _threads
    _threads = count


@contextmanager
def without_gradient() -> Iterator[None]:
    """Let the native operators of this thread return constants.

    Results are already computed. MLX evaluates a result with a gradient again when the next
    operator uses it; in a tiny model this takes as much time as all the rest.
    """
    token = arrays_mlx.differentiable.set(False)
    try:
        yield
    finally:
        arrays_mlx.differentiable.reset(token)


class NativeMLXOps(NativeOps, MLXOps):
    """The native operators on arrays in memory that the CPU can read."""

    slstm, evaluates = SLSTM_RECOMPUTED, True

    def apply(self, op: CustomOp, *inputs: array | None, **settings: Any) -> Sequence[array]:
        """Call a custom op; it saves arrays for its gradient, except in `without_gradient`."""
        settings["threads"], save = _threads, arrays_mlx.differentiable.get()

        def forward(*inputs: array | None) -> tuple[Sequence[array], Any]:
            results, saved = op.forward(*views(*inputs), save=save, **settings)
            outputs = [_copied(x) for x in results]
            # Saves the copies, so that the results themselves are freed.
            return outputs, (saved, [outputs[position] for position in op.saved_results])

        def backward(saved: Any, d_results: Sequence[array], needs: Sequence[bool]) -> list[Any]:
            arrays, outputs = saved
            saved = (*arrays, *views(*outputs))
            grads = op.backward(saved, views(*d_results), needs, **settings)
            return [_copied(x) if need else None for x, need in zip(grads, needs, strict=True)]

        return arrays_mlx.custom_op(forward, backward, *inputs)

    def constant(self, x: array | None, dtype: str) -> View | None:
        """View an array without its gradient."""
        return None if x is None else views(x.astype(getattr(mx, dtype)))[0]

    def uses_native_gemm(self, weights: Sequence[array]) -> bool:
        """Whether the native matmul is the faster one."""
        return FAST_GEMM or self.rounds


def views(*arrays: array | None) -> Views:
    """Evaluate arrays and return row-major views of them, without a copy of row-major arrays.

    A view keeps its array alive. Views are for reading: MLX may share the memory among arrays.
    """
    mx.eval(arrays)
    return [None if x is None else np.asarray(x, order="C") for x in arrays]


def _copied(x: View) -> array:
    """Return an array of MLX's own; a plain buffer gets there faster than a NumPy array."""
    return mx.array(memoryview(x))  # type: ignore[arg-type]


OPS = NativeMLXOps()
