"""The operators in PyTorch with the cells and the convolution as Metal kernels; float32."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog.models.ops.metal.cells import MetalCells
from mlxhog.models.ops.reference.ops_torch import TorchOps


class MetalOps(MetalCells, TorchOps):
    """The operators on one engine: `mps` takes tensors as they are, the others NumPy arrays."""

    def enter(self, arrays: Sequence[Tensor]) -> list[Any]:
        """Return the engine's own arrays of detached tensors, row-major."""
        ready = [x.detach().contiguous() for x in arrays]
        return ready if self.engine.name == "mps" else [self.engine.array(x.numpy()) for x in ready]

    def leave(self, arrays: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the engine's results as tensors."""
        if self.engine.name == "mps":
            return tuple(arrays)
        return tuple(torch.from_numpy(self.engine.host(x)) for x in arrays)

    def apply(
        self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor, **how: Any
    ) -> Sequence[Tensor]:
        """Return the results, with their place in autograd's graph."""
        results: tuple[Tensor, ...] = _Differentiable.apply(  # type: ignore[no-untyped-call]
            forward, backward, how, *inputs
        )
        return results


class _Differentiable(Function):
    @staticmethod
    def forward(
        ctx: Any, forward: Any, backward: Any, how: dict[str, Any], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        results, saved = forward(*inputs, **how)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        results = (results[0], *(x.clone() for x in results[1:]))  # views of what is saved
        ctx.settings = backward, how, len(inputs), [x.shape for x in results]
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        backward, how, count, shapes = ctx.settings
        saved = ctx.saved_tensors
        d_results = tuple(
            saved[0].new_zeros(shape) if dy is None else dy
            for dy, shape in zip(d_results, shapes, strict=True)
        )
        grads = backward(saved, d_results, **how)
        return None, None, None, *grads, *[None] * (count - len(grads))
