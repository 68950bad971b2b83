"""The operators in MLX with the cells and the convolution as Metal kernels; float32.

On the engine `mlx` a cell is as lazy as any operator. An emulated one evaluates its inputs when it
is called, so keep that out of `mx.compile`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops.arrays_mlx import with_vjp
from mlxhog.models.ops.eager.ops_mlx import MLXOps
from mlxhog.models.ops.metal.cells import MetalCells


class MetalOps(MetalCells, MLXOps):
    """The operators on one engine: `mlx` takes MLX's arrays as they are, others NumPy arrays."""

    def apply(
        self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: array, **how: Any
    ) -> Sequence[array]:
        """Return the results; what the gradient needs are results of the function, too."""
        count = 0

        def both(*inputs: array) -> tuple[array, ...]:
            nonlocal count
            results, saved = forward(*inputs, **how)
            count = len(results)
            return *results, *saved

        def gradients(inputs: Any, d_results: Any, results: Any) -> tuple[array, ...]:
            grads = backward(results[count:], d_results[:count], **how)
            return *grads, *map(mx.zeros_like, inputs[len(grads) :])

        every = with_vjp(gradients)(both)(*inputs)
        return every[:count]
