"""The eager operators in float64 with recurrent cells: the reference of every implementation.

Arrays are float64 tensors of PyTorch on the CPU, which differentiates them. The equations of the
cells stand at the operators.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, einsum

from mlxhog.models.ops.eager.ops_torch import TorchOps
from mlxhog.models.ops.mlstm import State, initial_state


class Float64Ops(TorchOps):
    """The operators, with cells that take the arguments of those of `Ops`."""

    max_logits = 1 << 40  # one chunk

    def bfloat16(self, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    def mlstm_cell(
        self, *x: Tensor, chunk_size: int, state: Sequence[Tensor] | None = None, **how: Any
    ) -> tuple[Tensor, State]:
        return self.mlstm_recurrent(*x, state=initial_state(state), **how)

    def recurrence(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, **how: Any
    ) -> tuple[Tensor, Tensor]:
        beta = how.get("beta")
        S = _initial(how, k, len(k), *k.shape[2:], v.shape[-1])
        output, hs = "bhkv,bhv->bhk" if how.get("transpose_state") else "bhkv,bhk->bhv", []
        for t in range(q.shape[1]):
            before, write = S, v[:, t]
            S = log_decay[:, t].exp()[..., None] * S
            if beta is not None:
                write = beta[:, t, :, None] * (write - einsum("bhkv,bhk->bhv", S, k[:, t]))
            S = S + k[:, t, :, :, None] * write[:, :, None]
            if (read := how.get("read")) is not None:
                value = einsum("bhkv,bhk->bhv", before, read[:, t])
                S = S - how["removal"][:, t, :, :, None] * value[:, :, None]
            hs.append(how.get("scale", 1.0) * einsum(output, S, q[:, t]))
        return torch.stack(hs, 1), S

    def regression_cell(
        self, q: Tensor, k: Tensor, log_decay: Tensor, ridge: Tensor, **how: Any
    ) -> tuple[Tensor, Tensor]:
        S, xs = _initial(how, k, len(k), *k.shape[2:], k.shape[-1]), []
        for t in range(q.shape[1]):
            S = log_decay[:, t].exp()[..., None] * S + k[:, t, :, :, None] * k[:, t, :, None]
            xs.append(torch.linalg.solve(S.mT + torch.diag_embed(ridge), q[:, t]))
        return torch.stack(xs, 1), S

    def selective_scan(
        self, u: Tensor, dt: Tensor, A: Tensor, Bt: Tensor, Ct: Tensor, **how: Any
    ) -> tuple[Tensor, Tensor]:
        S, ys = _initial(how, u, len(u), *A.shape), []
        for t in range(u.shape[1]):
            written = (dt[:, t] * u[:, t])[..., None] * Bt[:, t, None]
            S = (dt[:, t, :, None] * A).exp() * S + written
            ys.append(einsum("bcn,bn->bc", S, Ct[:, t]))
        return torch.stack(ys, 1), S


def _initial(how: dict[str, Any], like: Tensor, *shape: int) -> Tensor:
    state: Tensor | None = how.get("state")
    return like.new_zeros(shape) if state is None else state


def tensor(x: NDArray[Any]) -> Tensor:
    """Return a copy, float64 unless it is an integer array, such as a count of positions."""
    return torch.tensor(np.asarray(x, np.float64 if x.dtype.kind == "f" else None))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute small tensors in the block without waiting for other threads of PyTorch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


OPS = Float64Ops()
