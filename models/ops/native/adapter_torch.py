"""The native operators behind torch autograd: conversion of tensors for a pair.

Every operator uses `torch.get_num_threads()` threads. Results are computed into NumPy arrays, whose
memory the tensors share.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops.native.operators import NativeOps
from mlxhog.models.ops.native.pairs import SLSTM, Pair, View
from mlxhog.models.ops.reference.ops_torch import TorchOps

FAST_GEMM = ops.gemm_kernel() == "avx512"
"""Without AVX-512 the product of torch's own library is as fast or faster."""


class NativeTorchOps(NativeOps, TorchOps):
    """The native operators on tensors of the CPU."""

    slstm = SLSTM

    def apply(self, pair: Pair, *inputs: Tensor | None, **settings: Any) -> Sequence[Tensor]:
        """Call a pair; it saves nothing if no input requires a gradient."""
        differentiated = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in inputs
        )
        if differentiated:
            return cast(
                tuple[Tensor, ...],
                _Differentiable.apply(pair, settings, *inputs),  # type: ignore[no-untyped-call]
            )
        arrays = [None if x is None else _array(x) for x in inputs]
        results, _ = pair.forward(*arrays, keep=False, threads=torch.get_num_threads(), **settings)
        return [torch.from_numpy(x) for x in results]

    def constant(self, x: Tensor | None, dtype: str) -> View | None:
        """View a tensor without its gradient; copies only where it has another type."""
        return None if x is None else _array(x.to(getattr(torch, dtype)))

    def multiplies(self, weights: Sequence[Tensor]) -> bool:
        """Whether the native matrix product is the faster one."""
        return FAST_GEMM


class _Differentiable(Function):
    """(pair, settings, *inputs) -> the pair's results."""

    @staticmethod
    def forward(
        ctx: Any, pair: Pair, settings: dict[str, Any], *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        tensors = [None if x is None else x.contiguous() for x in inputs]
        arrays = [None if x is None else x.detach().numpy() for x in tensors]
        threads = torch.get_num_threads()
        results, saved = pair.forward(*arrays, keep=True, threads=threads, **settings)
        outputs = tuple([torch.from_numpy(x) for x in results])
        # Save the original tensors: autograd then notices a change of them before the gradient.
        known = dict(zip(map(id, arrays), tensors, strict=True))
        ctx.save_for_backward(
            *[known[id(x)] if id(x) in known else torch.from_numpy(x) for x in saved],
            *[outputs[position] for position in pair.saved_results],
        )
        ctx.set_materialize_grads(False)
        ctx.pair, ctx.settings = pair, settings
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(x is None for x in d_results):  # autograd asks, although nothing depends on them
            return (None,) * len(ctx.needs_input_grad)
        saved = [None if x is None else x.detach().numpy() for x in ctx.saved_tensors]
        d_arrays = [None if x is None else _array(x) for x in d_results]
        needs, threads = ctx.needs_input_grad[2:], torch.get_num_threads()
        grads = ctx.pair.backward(saved, d_arrays, needs, threads=threads, **ctx.settings)
        needed = zip(grads, needs, strict=True)
        return None, None, *(torch.from_numpy(x) if need else None for x, need in needed)


def _array(x: Tensor) -> NDArray[Any]:
    """View a tensor as a C-contiguous NumPy array; copies only where it is not contiguous."""
    view: NDArray[Any] = x.detach().contiguous().numpy()
    return view


OPS = NativeTorchOps()
