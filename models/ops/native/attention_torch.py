"""Rotary positions and causal attention as native CPU kernels behind torch autograd; float32 only.

`kernels.py` says what they promise, `reference/attention_torch.py` is the plain form.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops.native.call_torch import array, threads
from mlxhog.models.ops.native.call_torch import array_or_none as _array


def rope(x: Tensor, base: float, offset: Tensor | None = None) -> Tensor:
    """Turn the two halves of every head of x (B, S, NH, DH) against each other."""
    counts = None if offset is None else offset.to(torch.int32)
    return cast(Tensor, _Rope.apply(x, base, counts))  # type: ignore[no-untyped-call]


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Attend from q (B, S, NH, DH) to the last keys up to each position of k, v (B, L, NH, DH)."""
    counts = None if lengths is None else lengths.to(torch.int32)
    return cast(Tensor, _Attention.apply(q, k, v, counts, window))  # type: ignore[no-untyped-call]


class _Rope(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: float, offset: Tensor | None) -> Tensor:
        ctx.base, ctx.offset = base, offset
        return _turned(x, base, offset, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        return _turned(d_out, ctx.base, ctx.offset, back=True), None, None


def _turned(x: Tensor, base: float, offset: Tensor | None, *, back: bool) -> Tensor:
    out = torch.empty(x.shape)
    ops.rope(array(x), _array(offset), array(out), base=base, back=back, threads=threads())
    return out


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, window: int | None
    ) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        B, S, NH, _ = q.shape
        out, lse = torch.empty_like(q), torch.empty(B, NH, S)
        arrays: list[Any] = [_array(x) for x in (q, k, v, lengths, out, lse)]
        ops.attention(*arrays, window=window, threads=threads())
        ctx.save_for_backward(q, k, v, lengths, lse)
        ctx.window = window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in saved[:3]]
        arrays: list[Any] = [_array(x) for x in (*saved, d_out, *grads)]
        ops.attention_grad(*arrays, window=ctx.window, threads=threads())
        return *grads, None, None
