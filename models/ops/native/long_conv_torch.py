"""The convolution as long as the sequence as a native CPU kernel behind torch autograd.

`kernels.py` says what it promises; `reference/long_conv_torch.py`, by transforms, computes the
sequences that are too long for the kernel. float32 only.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops.native.call_torch import array, threads
from mlxhog.models.ops.reference import long_conv_torch as by_transform


def long_conv(x: Tensor, f: Tensor) -> Tensor:
    """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S."""
    if x.shape[1] > ops.LONG_CONV_DIRECT:
        return by_transform.long_conv(x, f)
    return cast(Tensor, _LongConv.apply(x, f))  # type: ignore[no-untyped-call]


class _LongConv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor) -> Tensor:
        x, f = x.contiguous(), f.contiguous()
        y = torch.empty_like(x)
        ops.long_conv(array(x), array(f), array(y), threads=threads())
        ctx.save_for_backward(x, f)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, f = ctx.saved_tensors
        dx, df = torch.empty_like(x), torch.empty_like(f)
        ops.long_conv_grad(*map(array, (x, f, dy, dx, df)), threads=threads())
        return dx, df
