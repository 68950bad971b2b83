"""The ops in PyTorch with the cells as Metal kernels; float32.

`kernels.py` says what each op promises, `reference/ops_torch.py` has the ops that torch itself
does well.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog.metal.engine import Engine
from mlxhog.models.ops import arrays_torch
from mlxhog.models.ops.metal import conv_torch as metal_conv_torch
from mlxhog.models.ops.metal import mlstm as metal_mlstm
from mlxhog.models.ops.metal import slstm_torch as metal_slstm_torch
from mlxhog.models.ops.metal.call_torch import enter, leave
from mlxhog.models.ops.reference import ops_torch as reference_torch


class MetalOps:
    """The ops on one engine: `mps` takes tensors as they are, the others NumPy arrays."""

    xp = arrays_torch
    rms_norm = staticmethod(reference_torch.rms_norm)
    layer_norm = staticmethod(reference_torch.layer_norm)
    head_norm = staticmethod(reference_torch.head_norm)
    linears = staticmethod(reference_torch.linears)
    block_diagonal = staticmethod(reference_torch.block_diagonal)
    activate = staticmethod(reference_torch.activate)
    glu = staticmethod(reference_torch.glu)
    swiglu = staticmethod(reference_torch.swiglu)
    soft_cap = staticmethod(reference_torch.soft_cap)
    rope = staticmethod(reference_torch.rope)
    attention = staticmethod(reference_torch.attention)
    decay_cell = staticmethod(reference_torch.decay_cell)
    delta_cell = staticmethod(reference_torch.delta_cell)
    selective_scan = staticmethod(reference_torch.selective_scan)
    long_conv = staticmethod(reference_torch.long_conv)
    head_norm_gate = staticmethod(reference_torch.head_norm_gate)
    head_norm_skip_gate = staticmethod(reference_torch.head_norm_skip_gate)
    capped_cross_entropy = staticmethod(reference_torch.capped_cross_entropy)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def causal_conv(
        self,
        x: Tensor,
        w: Tensor,
        b: Tensor,
        *,
        state: Tensor | None = None,
        starts: Tensor | None = None,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:
        """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
        return metal_conv_torch.causal_conv(self.engine, x, w, b, state, starts, silu)

    def mlstm_cell(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        f: Tensor,
        *,
        chunk_size: int,
        eps: float,
        state: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Run the cell over (B, S, NH, ...), any S, from `state` (C, n, m) or from zeros."""
        q, k, v, i, f = (x.float() for x in (q, k, v, i, f))
        B, S, NH, DK = q.shape
        if state is None:
            C = q.new_zeros(B, NH, DK, v.shape[-1])
            state = (C, q.new_zeros(B, NH, DK), q.new_zeros(B, NH))
        chunk = metal_mlstm.chunk_of(chunk_size, S)
        h, C, n, m = _MlstmCell.apply(  # type: ignore[no-untyped-call]
            self.engine, chunk, eps, q, k, v, i, f, *state
        )
        return h, (C, n, m)

    def slstm_cell(
        self,
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
        return metal_slstm_torch.slstm_cell(self.engine, i, f, z, o, R, b, state, starts)


class _MlstmCell(Function):
    @staticmethod
    def forward(
        ctx: Any, engine: Engine, chunk: int, eps: float, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        given = dict(zip(metal_mlstm.INPUTS, enter(engine, inputs), strict=True))
        found = metal_mlstm.forward(engine, given, chunk=chunk, eps=eps)
        results = leave(engine, found)
        ctx.save_for_backward(*inputs[:5], *results)
        ctx.set_materialize_grads(False)
        ctx.engine, ctx.chunk, ctx.eps = engine, chunk, eps
        h, *states = results[:4]
        return h, *(x[:, :, -1].clone() for x in states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, i, f, *results = ctx.saved_tensors
        h, C, n, m, _, _, M = results
        dh = torch.zeros_like(h) if dh is None else dh
        dC, dn, dm = (
            torch.zeros_like(x[:, :, 0]) if d is None else d
            for d, x in zip(d_last, (C, n, m), strict=True)
        )
        names = ("q", "k", "v", "i", *metal_mlstm.RESULTS, "dh", "dC_last", "dn_last")
        arrays = enter(ctx.engine, (q, k, v, i, *results, dh, dC, dn))
        saved = dict(zip(names, arrays, strict=True))
        found = metal_mlstm.backward(ctx.engine, saved, chunk=ctx.chunk, eps=ctx.eps)
        dq, dk, dv, di, db, dC, dn, dM = leave(ctx.engine, found)
        states = (C * dC).sum((-2, -1)) + (n * dn).sum(-1)  # (B, NH, NC + 1)
        dM[..., -1] += dm - states[..., -1]
        lf = F.logsigmoid(f).transpose(1, 2)
        di_M, dlf_M, dm = _through_stabilisers(i.transpose(1, 2), lf, m[..., 0], M, dM)
        dlf = _through_sums(db, states[..., 1:], ctx.chunk) + dlf_M
        df = torch.sigmoid(-f) * dlf.transpose(1, 2)
        di = di + di_M.transpose(1, 2)
        return None, None, None, dq, dk, dv, di, df, dC[:, :, 0], dn[:, :, 0], dm + states[..., 0]


def _through_sums(db: Tensor, at_end: Tensor, chunk: int) -> Tensor:
    """Gradient of logsig(f) (B, NH, S): of all sums b from there to the end of the chunk."""
    B, NH, S = db.shape
    db = F.pad(db, (0, -S % chunk)).view(B, NH, -1, chunk)
    later = db.flip(-1).cumsum(-1).flip(-1) + at_end[..., None]
    return later.flatten(-2)[..., :S]


def _through_stabilisers(
    i: Tensor, lf: Tensor, m0: Tensor, M: Tensor, dM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of i, lf and m0 through M_t = max(lf_t + M_t-1, i_t); all (B, NH, S), m0 (B, NH).

    From a position dM goes back through lf to the one where i was larger, or else to m0.
    """
    S = i.shape[-1]
    opened = i >= lf + torch.cat([m0[..., None], M[..., :-1]], -1)
    position = torch.where(opened, torch.arange(S, device=i.device), S)
    next_opened = F.pad(position.flip(-1).cummin(-1).values.flip(-1)[..., 1:], (0, 1), value=S)
    later = F.pad(dM.flip(-1).cumsum(-1).flip(-1), (0, 1))
    dM = later[..., :-1] - later.gather(-1, next_opened)
    dlf = torch.where(opened, 0.0, dM)
    return torch.where(opened, dM, 0.0), dlf, dlf[..., 0]
