"""The sLSTM cell as Metal kernels behind torch autograd; float32."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog.metal.engine import Engine
from mlxhog.models.ops.metal import slstm as metal_slstm
from mlxhog.models.ops.metal.call_torch import enter, leave


def slstm_cell(
    engine: Engine,
    i: Tensor,
    f: Tensor,
    z: Tensor,
    o: Tensor,
    R: Tensor,
    b: Tensor,
    state: Sequence[Tensor] | None,
    starts: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Run the cell over (B, S, NH, DH), any S, from `state` (h, c, n, m) or from zeros."""
    B, S, NH, DH = i.shape
    G = torch.stack([x.float() for x in (i, f, z, o)], 2)
    R, b = R.float().reshape(NH, 4, DH, DH), b.float().reshape(4, NH, DH)
    if state is None:
        zeros = G.new_zeros(B, NH, DH)
        state = (zeros, zeros, zeros, zeros)
    if starts is None:
        starts = i.new_zeros(B, S)
    h, c, n, m = _SlstmCell.apply(  # type: ignore[no-untyped-call]
        engine, G, R, b, *state, starts.to(torch.int32)
    )
    return h, (h[:, -1], c, n, m)


class _SlstmCell(Function):
    """`INPUTS` of `slstm.py` -> h of every position, and the last c, n and m."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(metal_slstm.INPUTS, enter(engine, inputs), strict=True))
        h, c, n, m = leave(engine, metal_slstm.forward(engine, given))
        ctx.save_for_backward(*inputs, h, c, n, m)
        ctx.set_materialize_grads(False)
        ctx.engine = engine
        return h, c[:, -1].clone(), n[:, -1].clone(), m[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, _, h0, *_, starts, h, _, _, _ = ctx.saved_tensors
        dh = torch.zeros_like(h) if dh is None else dh
        given = (torch.zeros_like(h0) if x is None else x for x in d_last)
        names = (*metal_slstm.INPUTS, *metal_slstm.STATES, *metal_slstm.D_STATES)
        arrays = enter(ctx.engine, (*ctx.saved_tensors, dh, *given))
        saved = dict(zip(names, arrays, strict=True))
        dG, *d_state = leave(ctx.engine, metal_slstm.backward(ctx.engine, saved))
        dR, db = _parameter_gradients(dG, h0, h, starts)
        return None, dG, dR, db, *d_state, None


def _parameter_gradients(
    dG: Tensor, h0: Tensor, h: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of R (NH, 4, DH, DH) and of the biases (4, NH, DH), summed over all positions."""
    B, S, _, NH, DH = dG.shape
    before = torch.cat([h0[:, None], h[:, :-1]], 1)
    before = torch.where(starts[:, :, None, None] != 0, 0.0, before)
    rows = dG.permute(3, 2, 4, 0, 1).reshape(NH, 4 * DH, B * S)
    dR = rows @ before.permute(2, 0, 1, 3).reshape(NH, B * S, DH)
    return dR.reshape(NH, 4, DH, DH), dG.sum((0, 1))
