"""The operators in PyTorch with the cells and the convolution as Metal kernels; float32.

`kernels.py` says what each operator promises; the others are the plain ones of
`reference/ops_torch.py`, which torch itself does well.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog.metal.engine import Engine
from mlxhog.models.ops.metal import launches
from mlxhog.models.ops.reference import ops_torch as reference_torch
from mlxhog.models.ops.reference.ops_torch import last_inputs, positions_back


class MetalOps:
    """The operators on one engine: `mps` takes tensors as they are, the others NumPy arrays."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        """Return the plain operator: what is not here has no Metal kernel."""
        return getattr(reference_torch, name)

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
        B, S, K = *x.shape[:2], w.shape[-1]
        inputs = x.float() if state is None else torch.cat([state.float(), x.float()], 1)
        if starts is None:
            back = torch.full((B, S), K - 1, dtype=torch.int32, device=x.device)
        else:
            back = positions_back(starts, K)
        y: Tensor = _CausalConv.apply(  # type: ignore[no-untyped-call]
            self.engine, silu, inputs, w.float(), b.float(), back
        )
        padded = F.pad(inputs, (0, 0, max(0, K - 1 - inputs.shape[1]), 0))
        return y.to(x.dtype), last_inputs(padded[:, padded.shape[1] - (K - 1) :], starts)

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
        chunk = launches.chunk_of(chunk_size, S)
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
        B, S, NH, DH = i.shape
        G = torch.stack([x.float() for x in (i, f, z, o)], 2)
        R, b = R.float().reshape(NH, 4, DH, DH), b.float().reshape(4, NH, DH)
        if state is None:
            zeros = G.new_zeros(B, NH, DH)
            state = (zeros, zeros, zeros, zeros)
        if starts is None:
            starts = i.new_zeros(B, S)
        h, c, n, m = _SlstmCell.apply(  # type: ignore[no-untyped-call]
            self.engine, G, R, b, *state, starts.to(torch.int32)
        )
        return h, (h[:, -1], c, n, m)


class _CausalConv(Function):
    """The arrays of `launches.conv` -> y."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, silu: bool, *arrays: Tensor) -> Tensor:
        ctx.save_for_backward(*arrays)
        ctx.engine, ctx.silu = engine, silu
        (y,) = _leave(engine, [launches.conv(engine, *_enter(engine, arrays), silu=silu)])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        arrays = _enter(ctx.engine, (*ctx.saved_tensors, dy))
        grads = launches.conv_grad(ctx.engine, *arrays, silu=ctx.silu)
        return None, None, *_leave(ctx.engine, grads), None


class _MlstmCell(Function):
    @staticmethod
    def forward(
        ctx: Any, engine: Engine, chunk: int, eps: float, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        inputs_by_name = dict(zip(launches.MLSTM_INPUTS, _enter(engine, inputs), strict=True))
        results = _leave(engine, launches.mlstm(engine, inputs_by_name, chunk=chunk, eps=eps))
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
        arrays = _enter(ctx.engine, (q, k, v, i, *results, dh, dC, dn))
        saved = dict(zip(launches.MLSTM_SAVED, arrays, strict=True))
        grads = launches.mlstm_grad(ctx.engine, saved, chunk=ctx.chunk, eps=ctx.eps)
        dq, dk, dv, di, db, dC, dn, dM = _leave(ctx.engine, grads)
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


class _SlstmCell(Function):
    """`SLSTM_INPUTS` -> h of every position, and the last c, n and m."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, *inputs: Tensor) -> tuple[Tensor, ...]:
        inputs_by_name = dict(zip(launches.SLSTM_INPUTS, _enter(engine, inputs), strict=True))
        h, c, n, m = _leave(engine, launches.slstm(engine, inputs_by_name))
        ctx.save_for_backward(*inputs, h, c, n, m)
        ctx.set_materialize_grads(False)
        ctx.engine = engine
        return h, c[:, -1].clone(), n[:, -1].clone(), m[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, _, h0, *_, starts, h, _, _, _ = ctx.saved_tensors
        dh = torch.zeros_like(h) if dh is None else dh
        d_states = (torch.zeros_like(h0) if x is None else x for x in d_last)
        arrays = _enter(ctx.engine, (*ctx.saved_tensors, dh, *d_states))
        saved = dict(zip(launches.SLSTM_SAVED, arrays, strict=True))
        dG, *d_state = _leave(ctx.engine, launches.slstm_grad(ctx.engine, saved))
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


def _enter(engine: Engine, tensors: Sequence[Tensor]) -> list[Any]:
    """Return the engine's own arrays of detached tensors, row-major."""
    ready = [x.detach().contiguous() for x in tensors]
    return ready if engine.name == "mps" else [engine.array(x.numpy()) for x in ready]


def _leave(engine: Engine, arrays: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of what the engine computed."""
    if engine.name == "mps":
        return list(arrays)
    return [torch.from_numpy(engine.host(x)) for x in arrays]
