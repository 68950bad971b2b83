"""The operators in MLX with the cells and the convolution as Metal kernels; float32.

On the engine `mlx` a cell is as lazy as any operator. An emulated one evaluates its inputs when it
is called, so keep that out of `mx.compile`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops.arrays_mlx import differentiable
from mlxhog.models.ops.metal.cells import MetalCells
from mlxhog.models.ops.reference.ops_mlx import MLXOps


class MetalOps(MetalCells, MLXOps):
    """The operators on one engine: `mlx` takes MLX's arrays as they are, others NumPy arrays."""

    def apply(
        self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: array, **how: Any
    ) -> Sequence[array]:
        """Return the results; what the gradient needs are results of the function, too.

        Where none may follow, nothing is kept for it.
        """
        if not differentiable.get():
            plain: Sequence[array] = forward(*inputs, **how)[0]
            return plain
        count = 0

        def both(*inputs: array) -> tuple[array, ...]:
            nonlocal count
            results, saved = forward(*inputs, **how)
            count = len(results)
            return *results, *saved

        def gradients(inputs: Any, d_results: Any, results: Any) -> tuple[array, ...]:
            grads = backward(results[count:], d_results[:count], **how)
            return *grads, *map(mx.zeros_like, inputs[len(grads) :])

        function = mx.custom_function(both)
        function.vjp(gradients)
        every: Sequence[array] = function(*inputs)  # type: ignore[assignment]
        return every[:count]
