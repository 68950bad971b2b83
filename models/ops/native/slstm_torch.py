"""The sLSTM cell as a native CPU kernel behind torch autograd; float32 only.

`kernels.py` says what it promises, `slstm_torch.py` is the plain form, `metal/native/ops/slstm.h`
the kernel. It uses `torch.get_num_threads()` threads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops.native.call_torch import array, threads


def slstm_cell(
    i: Tensor,
    f: Tensor,
    z: Tensor,
    o: Tensor,
    R: Tensor,
    b: Tensor,
    *,
    state: Sequence[Tensor] | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Run the cell over (B, S, NH, DH), any S, from `state` (h, c, n, m) or from zeros."""
    if state is None:
        zeros = i.new_zeros(i.shape[0], *i.shape[2:])
        state = (zeros, zeros, zeros, zeros)
    arrays = (i, f, z, o, R, b, *state)
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in arrays)
    found = _SlstmCell.apply(differentiated, starts, *arrays)  # type: ignore[no-untyped-call]
    h, h_last, c, n, m = found
    return h, (h_last, c, n, m)


class _SlstmCell(Function):
    @staticmethod
    def forward(
        ctx: Any, differentiated: bool, starts: Tensor | None, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        *given, h0, c0, n0, m0 = (x.contiguous() for x in inputs)
        if starts is not None:
            starts = starts.to(torch.uint8)
        h, last = torch.empty_like(given[0]), [x.clone() for x in (h0, c0, n0, m0)]
        B, S, NH, DH = h.shape
        tape = torch.empty(B, S, NH, ops.SLSTM_TAPE, DH) if differentiated else None
        ops.slstm(*map(_array, (*given, starts, h, tape, *last)), threads=threads())
        if differentiated:
            ctx.save_for_backward(given[4], starts, h0, c0, n0, h, tape)
        ctx.set_materialize_grads(False)
        return h, *last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        R, _, h0, _, _, h, _ = ctx.saved_tensors
        dh = torch.zeros_like(h) if dh is None else dh
        # The kernel overwrites the state's gradient; autograd may hold its argument elsewhere.
        d_state = [torch.zeros_like(h0) if x is None else x.clone() for x in d_last]
        grads = [*(torch.empty_like(h) for _ in "ifzo"), torch.empty_like(R)]
        grads.append(torch.empty(4 * h0[0].numel()))
        saved = (*ctx.saved_tensors, dh, *grads, *d_state)
        ops.slstm_grad(*map(_array, saved), threads=threads())
        return None, None, *grads, *d_state


def _array(x: Tensor | None) -> Any:
    return None if x is None else array(x)
