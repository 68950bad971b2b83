"""The native operators behind torch autograd: conversion of tensors for a custom op.

An operator uses `torch.get_num_threads()` threads. Results are computed into NumPy arrays, whose
memory the tensors share.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlxhog._native import ops
from mlxhog.models.ops.arrays_torch import custom_op, needs_gradient
from mlxhog.models.ops.eager.ops_torch import TorchOps
from mlxhog.models.ops.native.custom_ops import SLSTM, CustomOp, View
from mlxhog.models.ops.native.operators import NativeOps

FAST_GEMM = ops.gemm_kernel().startswith("avx")
"""On other processors the matmul of torch's own library is as fast or faster."""


class NativeTorchOps(NativeOps, TorchOps):
    """The native operators on tensors of the CPU."""

    slstm = SLSTM

    def apply(self, op: CustomOp, *inputs: Tensor | None, **settings: Any) -> Sequence[Tensor]:
        """Call a custom op; it saves nothing if no input requires a gradient."""
        settings["threads"], save = torch.get_num_threads(), needs_gradient(inputs)

        def forward(*inputs: Tensor | None) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
            tensors = [None if x is None else x.contiguous() for x in inputs]
            arrays = [_array(x) for x in tensors]
            results, saved = op.forward(*arrays, save=save, **settings)
            outputs = [torch.from_numpy(x) for x in results]
            if not save:
                return outputs, ()
            # Saves the original tensors: autograd then notices if one changes before the gradient.
            known = dict(zip(map(id, arrays), tensors, strict=True))
            tensors = [known[id(x)] if id(x) in known else torch.from_numpy(x) for x in saved]
            return outputs, [*tensors, *[outputs[position] for position in op.saved_results]]

        def backward(
            saved: Sequence[Tensor], d_results: Sequence[Tensor | None], needs: Sequence[bool]
        ) -> Sequence[Tensor | None]:
            arrays = [*map(_array, saved)], [*map(_array, d_results)]
            grads = zip(op.backward(*arrays, needs, **settings), needs, strict=True)
            return [torch.from_numpy(x) if need else None for x, need in grads]

        return custom_op(forward, backward, *inputs)

    def constant(self, x: Tensor | None, dtype: str) -> View | None:
        """View a tensor without its gradient; copies only where it has another type."""
        return None if x is None else _array(x.to(getattr(torch, dtype)))

    def uses_native_gemm(self, weights: Sequence[Tensor]) -> bool:
        """Whether the native matmul is the faster one."""
        return FAST_GEMM or self.rounds


def _array(x: Tensor | None) -> View | None:
    """View a tensor as a C-contiguous NumPy array; copied only where it is not contiguous."""
    return None if x is None else x.detach().contiguous().numpy()


OPS = NativeTorchOps()
