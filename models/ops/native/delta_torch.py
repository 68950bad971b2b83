"""The gated delta rule as a native CPU kernel behind torch autograd; float32 only.

`kernels.py` says what it promises, `reference/delta_torch.py` is the plain form. The kernel goes
position by position, so `chunk_size` changes nothing.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops.native.call_torch import array_or_none as _array
from mlxhog.models.ops.native.call_torch import differentiated, threads


def delta_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    chunk_size: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the rule over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    keep = differentiated(q, k, v, log_decay, beta, state)
    found = _Delta.apply(q, k, v, log_decay, beta, state, keep)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], found)


class _Delta(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        beta: Tensor,
        state: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        inputs = [x.contiguous() for x in (q, k, v, log_decay, beta)]
        B, S, NH, DK = q.shape
        DV = v.shape[-1]
        h, last = torch.empty(v.shape), torch.empty(B, NH, DK, DV)
        kept = torch.empty(B, NH, ops.decay_chunks(S=S, DK=DK), DK, DV) if keep else None
        held = torch.empty(v.shape) if keep else None
        ops.delta(*map(_array, (*inputs, state, h, last, kept, held)), threads=threads())
        ctx.save_for_backward(*inputs, kept, held)
        ctx.set_materialize_grads(False)
        ctx.has_state = state is not None
        return h, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, kept, held = ctx.saved_tensors
        dh = torch.zeros_like(held) if dh is None else dh
        grads = [torch.empty_like(x) for x in inputs]
        d_state = torch.empty_like(kept[:, :, 0]) if ctx.has_state else None
        arrays = map(_array, (*inputs, kept, held, dh, d_last, *grads, d_state))
        ops.delta_grad(*arrays, threads=threads())
        return *grads, d_state, None
