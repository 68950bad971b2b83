"""The ops of xLSTM Large in PyTorch with the mLSTM cell as Metal kernels; float32.

`kernels.py` says what each op promises, `reference_torch.py` has the ops that torch itself
does well.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog.metal.engine import Engine
from mlxhog.models.ops import metal_mlstm, reference_torch


class MetalOps:
    """The ops on one engine: `mps` takes tensors as they are, the others NumPy arrays."""

    rms_norm = staticmethod(reference_torch.rms_norm)
    layer_norm = staticmethod(reference_torch.layer_norm)
    head_norm = staticmethod(reference_torch.head_norm)
    linears = staticmethod(reference_torch.linears)
    block_diagonal = staticmethod(reference_torch.block_diagonal)
    causal_conv = staticmethod(reference_torch.causal_conv)
    glu = staticmethod(reference_torch.glu)
    swiglu = staticmethod(reference_torch.swiglu)
    soft_cap = staticmethod(reference_torch.soft_cap)
    head_norm_gate = staticmethod(reference_torch.head_norm_gate)
    head_norm_skip_gate = staticmethod(reference_torch.head_norm_skip_gate)
    capped_cross_entropy = staticmethod(reference_torch.capped_cross_entropy)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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


class _MlstmCell(Function):
    @staticmethod
    def forward(
        ctx: Any, engine: Engine, chunk: int, eps: float, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        given = dict(zip(metal_mlstm.INPUTS, _enter(engine, inputs), strict=True))
        found = metal_mlstm.forward(engine, given, chunk=chunk, eps=eps)
        results = _leave(engine, found)
        ctx.save_for_backward(*inputs[:5], *results)
        ctx.set_materialize_grads(False)
        ctx.engine, ctx.chunk, ctx.eps = engine, chunk, eps
        h, C, n, m, *_ = results
        m_last = m[:, :, -1].clone()
        ctx.mark_non_differentiable(m_last)
        return h, C[:, :, -1].clone(), n[:, :, -1].clone(), m_last

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dh: Tensor | None, dC: Tensor | None, dn: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, i, f, *results = ctx.saved_tensors
        h, C, n, *_ = results
        dh = torch.zeros_like(h) if dh is None else dh
        dC = torch.zeros_like(C[:, :, 0]) if dC is None else dC
        dn = torch.zeros_like(n[:, :, 0]) if dn is None else dn
        names = ("q", "k", "v", "i", *metal_mlstm.RESULTS, "dh", "dC_last", "dn_last")
        arrays = _enter(ctx.engine, (q, k, v, i, *results, dh, dC, dn))
        saved = dict(zip(names, arrays, strict=True))
        found = metal_mlstm.backward(ctx.engine, saved, chunk=ctx.chunk, eps=ctx.eps)
        dq, dk, dv, di, db, dC, dn = _leave(ctx.engine, found)
        df = _forget_gradient(f, db, C, n, dC, dn, ctx.chunk)
        return None, None, None, dq, dk, dv, di, df, dC[:, :, 0], dn[:, :, 0], None


def _forget_gradient(
    f: Tensor, db: Tensor, C: Tensor, n: Tensor, dC: Tensor, dn: Tensor, chunk: int
) -> Tensor:
    """Gradient of f (B, S, NH): of all sums b from its position to the end of the chunk."""
    B, S, NH = f.shape
    at_end = (C[:, :, 1:] * dC[:, :, 1:]).sum((-2, -1)) + (n[:, :, 1:] * dn[:, :, 1:]).sum(-1)
    db = torch.nn.functional.pad(db, (0, -S % chunk)).view(B, NH, -1, chunk)
    later = db.flip(-1).cumsum(-1).flip(-1) + at_end[..., None]
    return torch.sigmoid(-f) * later.flatten(-2)[..., :S].transpose(1, 2)


def _enter(engine: Engine, tensors: Sequence[Tensor]) -> list[Any]:
    """Return the engine's own arrays of detached tensors, row-major."""
    ready = [x.detach().contiguous() for x in tensors]
    return ready if engine.name == "mps" else [engine.array(x.numpy()) for x in ready]


def _leave(engine: Engine, arrays: Sequence[Any]) -> list[Tensor]:
    if engine.name == "mps":
        return list(arrays)
    return [torch.from_numpy(engine.host(x)) for x in arrays]
