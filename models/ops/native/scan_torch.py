"""The selective scan as a native CPU kernel behind torch autograd; float32 only.

`kernels.py` says what it promises, `reference/scan_torch.py` is the plain form.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops.native.call_torch import array_or_none as _array
from mlxhog.models.ops.native.call_torch import differentiated, threads


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, Bt: Tensor, Ct: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over u (B, S, C) from `state` (B, C, N) or from zeros."""
    keep = differentiated(u, dt, A, Bt, Ct, state)
    found = _Scan.apply(u, dt, A, Bt, Ct, state, keep)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], found)


class _Scan(Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        Bt: Tensor,
        Ct: Tensor,
        state: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        inputs = [x.contiguous() for x in (u, dt, A, Bt, Ct)]
        B, S, C = u.shape
        N = A.shape[1]
        y, last = torch.empty(u.shape), torch.empty(B, C, N)
        kept = torch.empty(ops.scan_kept(B=B, S=S, C=C, N=N)) if keep else None
        ops.scan(*map(_array, (*inputs, state, y, last, kept)), threads=threads())
        ctx.save_for_backward(*inputs, kept)
        ctx.set_materialize_grads(False)
        ctx.state_shape = None if state is None else state.shape
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, kept = ctx.saved_tensors
        dy = torch.zeros_like(inputs[0]) if dy is None else dy
        grads = [torch.empty_like(x) for x in inputs]
        d_state = None if ctx.state_shape is None else torch.empty(ctx.state_shape)
        arrays = map(_array, (*inputs, kept, dy, d_last, *grads, d_state))
        ops.scan_grad(*arrays, threads=threads())
        return *grads, d_state, None
