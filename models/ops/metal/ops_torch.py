"""The operators in PyTorch with the cells and the convolution as Metal kernels; float32."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mlxhog.models.ops.arrays_torch import differentiable
from mlxhog.models.ops.eager.ops_torch import TorchOps
from mlxhog.models.ops.metal.cells import MetalCells


class MetalOps(MetalCells, TorchOps):
    """The operators on one engine: `mps` takes tensors as they are, the others NumPy arrays."""

    def row_major(self, x: Tensor) -> Tensor:
        """Return a detached tensor, row-major."""
        return x.detach().contiguous()

    def apply(
        self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor, **how: Any
    ) -> Sequence[Tensor]:
        """Return the results, with their place in autograd's graph."""
        shapes: list[torch.Size] = []

        def both(*inputs: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
            (first, *states), saved = forward(*inputs, **how)
            results = first, *(x.clone() for x in states)  # which are views of what is saved
            shapes.extend(x.shape for x in results)
            return results, saved

        def gradients(
            saved: Sequence[Tensor], d_results: Sequence[Tensor | None], needs: Sequence[bool]
        ) -> Sequence[Tensor | None]:
            pairs = zip(d_results, shapes, strict=True)
            ready = [saved[0].new_zeros(shape) if dy is None else dy for dy, shape in pairs]
            grads = backward(saved, ready, **how)
            return *grads, *[None] * (len(needs) - len(grads))

        return differentiable(both, gradients, *inputs)
