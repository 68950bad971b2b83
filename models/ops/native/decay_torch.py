"""The linear recurrence with decay as a native CPU kernel behind torch autograd; float32 only.

`kernels.py` says what it promises, `reference/decay_torch.py` is the plain form. The kernel goes
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


def decay_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float,
    chunk_size: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    keep = differentiated(q, k, v, log_decay, state)
    found = _Decay.apply(q, k, v, log_decay, state, scale, keep)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], found)


class _Decay(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        state: Tensor | None,
        scale: float,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        q, k, v, log_decay = (x.contiguous() for x in (q, k, v, log_decay))
        B, S, NH, DK = q.shape
        DV = v.shape[-1]
        h, last = torch.empty_like(v), torch.empty(B, NH, DK, DV)
        chunks = ops.decay_chunks(S=S, DK=DK)
        kept = torch.empty(B, NH, chunks, DK, DV) if keep else None
        arrays = map(_array, (q, k, v, log_decay, state, h, last, kept))
        ops.decay(*arrays, scale=scale, threads=threads())
        ctx.save_for_backward(q, k, v, log_decay, kept)
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.has_state = scale, state is not None
        return h, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, kept = ctx.saved_tensors
        dh = torch.zeros_like(v) if dh is None else dh
        grads = [torch.empty_like(x) for x in (q, k, v, log_decay)]
        d_state = torch.empty_like(kept[:, :, 0]) if ctx.has_state else None
        arrays = map(_array, (q, k, v, log_decay, kept, dh, d_last, *grads, d_state))
        ops.decay_grad(*arrays, scale=ctx.scale, threads=threads())
        return *grads, d_state, None, None
