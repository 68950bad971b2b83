"""The native operators behind torch autograd: conversion of tensors for a custom op.

Every operator uses `torch.get_num_threads()` threads. Results are computed into NumPy arrays, whose
memory the tensors share.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlxhog._native import ops
from mlxhog.models.ops.arrays_torch import differentiable, needs_gradient
from mlxhog.models.ops.eager.ops_torch import TorchOps
from mlxhog.models.ops.native.custom_ops import SLSTM, CustomOp, View
from mlxhog.models.ops.native.operators import NativeOps

FAST_GEMM = ops.gemm_kernel().startswith("avx")
"""On other processors the product of torch's own library is as fast or faster."""


class NativeTorchOps(NativeOps, TorchOps):
    """The native operators on tensors of the CPU."""

    slstm = SLSTM

    def apply(self, op: CustomOp, *inputs: Tensor | None, **settings: Any) -> Sequence[Tensor]:
        """Call a custom op; it saves nothing if no input requires a gradient."""
        settings["threads"] = torch.get_num_threads()
        if not needs_gradient(inputs):
            results, _ = op.forward(*map(_array, inputs), keep=False, **settings)
            return [torch.from_numpy(x) for x in results]

        def forward(*inputs: Tensor | None) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
            tensors = [None if x is None else x.contiguous() for x in inputs]
            arrays = [_array(x) for x in tensors]
            results, saved = op.forward(*arrays, keep=True, **settings)
            outputs = [torch.from_numpy(x) for x in results]
            # Save the original tensors: autograd then notices a change of them before the gradient.
            known = dict(zip(map(id, arrays), tensors, strict=True))
            of_gradient = [known[id(x)] if id(x) in known else torch.from_numpy(x) for x in saved]
            return outputs, [*of_gradient, *[outputs[position] for position in op.saved_results]]

        def backward(
            saved: Sequence[Tensor], d_results: Sequence[Tensor | None], needs: Sequence[bool]
        ) -> Sequence[Tensor | None]:
            arrays = [*map(_array, saved)], [*map(_array, d_results)]
            grads = zip(op.backward(*arrays, needs, **settings), needs, strict=True)
            return [torch.from_numpy(x) if need else None for x, need in grads]

        return differentiable(forward, backward, *inputs)

    def constant(self, x: Tensor | None, dtype: str) -> View | None:
        """View a tensor without its gradient; copies only where it has another type."""
        return None if x is None else _array(x.to(getattr(torch, dtype)))

    def multiplies(self, weights: Sequence[Tensor]) -> bool:
        """Whether the native matrix product is the faster one."""
        return FAST_GEMM or self.bfloat16


def _array(x: Tensor | None) -> View | None:
    """View a tensor as a C-contiguous NumPy array; copies only where it is not contiguous."""
    return None if x is None else x.detach().contiguous().numpy()


OPS = NativeTorchOps()
