"""The plain operators in float64, with the cells position by position: the reference of every form.

Arrays are float64 tensors of PyTorch on the CPU, which differentiates them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlxhog.models.ops.operators import Ops
from mlxhog.models.ops.reference.mlstm import State
from mlxhog.models.ops.reference.ops_torch import TorchPlainForm


class Float64Form(TorchPlainForm):
    """The operators; the equations of the cells stand in `operators.py`."""

    def mlstm_cell(
        self, *x: Tensor, chunk_size: int, eps: float, state: Sequence[Tensor] | None
    ) -> tuple[Tensor, State]:
        return self.mlstm_recurrent(*x, eps=eps, state=state)

    def recurrence(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        beta: Tensor | None,
        read: Tensor | None,
        removal: Tensor | None,
        state: Tensor | None,
        *,
        scale: float,
        by_value: bool,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        S = _start(k, v) if state is None else state
        read_out = "bhkv,bhv->bhk" if by_value else "bhkv,bhk->bhv"
        hs = []
        for t in range(q.shape[1]):
            before, write = S, v[:, t]
            S = log_decay[:, t].exp()[..., None] * S
            if beta is not None:
                write = beta[:, t, :, None] * (write - torch.einsum("bhkv,bhk->bhv", S, k[:, t]))
            S = S + k[:, t, :, :, None] * write[:, :, None]
            if read is not None and removal is not None:
                held = torch.einsum("bhkv,bhk->bhv", before, read[:, t])
                S = S - removal[:, t, :, :, None] * held[:, :, None]
            hs.append(scale * torch.einsum(read_out, S, q[:, t]))
        return torch.stack(hs, 1), S

    def regression_cell(
        self, *x: Tensor, steps: int, chunk_size: int, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q, k, log_decay, ridge = x
        S, xs = _start(k, k) if state is None else state, []
        for t in range(q.shape[1]):
            S = log_decay[:, t].exp()[..., None] * S + k[:, t, :, :, None] * k[:, t, :, None]
            xs.append(torch.linalg.solve(S.mT + torch.diag_embed(ridge), q[:, t]))
        return torch.stack(xs, 1), S

    def selective_scan(self, *x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        u, dt, A, Bt, Ct = x
        S = u.new_zeros(len(u), *A.shape) if state is None else state
        ys = []
        for t in range(u.shape[1]):
            written = (dt[:, t] * u[:, t])[..., None] * Bt[:, t, None]
            S = (dt[:, t, :, None] * A).exp() * S + written
            ys.append(torch.einsum("bcn,bn->bc", S, Ct[:, t]))
        return torch.stack(ys, 1), S


def _start(k: Tensor, v: Tensor) -> Tensor:
    """The memory before the first position, (B, NH, DK, DV) zeros."""
    return k.new_zeros(len(k), *k.shape[2:], v.shape[-1])


def tensor(x: NDArray[Any]) -> Tensor:
    """A copy, float64 unless it holds whole numbers, such as a count of positions."""
    return torch.tensor(np.asarray(x, np.float64 if x.dtype.kind == "f" else None))


OPS = Ops(Float64Form())
