"""The sLSTM cell in plain PyTorch; `slstm_numpy.py` has the equations, `kernels.py` the promise."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
    B, S, NH, DH = i.shape
    given = torch.stack([x.float() for x in (i, f, z, o)], 3) + b.float().view(4, NH, DH).transpose(
        0, 1
    )
    R_t = R.float().transpose(1, 2)
    if state is None:
        h = given.new_zeros(B, NH, DH)
        state = (h, h, h, h)
    h, c, n, m = state
    outputs = []
    for t in range(S):
        if starts is not None:
            first = starts[:, t, None, None] != 0
            h, c, n, m = (torch.where(first, 0.0, x) for x in (h, c, n, m))
        mixed = (h.transpose(0, 1) @ R_t).transpose(0, 1).view(B, NH, 4, DH)
        h, c, n, m = _step(given[:, t] + mixed, c, n, m)
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c, n, m)


def _step(pre: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The state after one step; pre (B, NH, 4, DH)."""
    i, f, z, o = pre.unbind(2)
    lf = m + F.logsigmoid(f)
    m = torch.where(n == 0, i, torch.maximum(i, lf))
    write = torch.exp(i - m)
    keep = torch.exp(torch.clamp(lf - m, max=0.0))
    c = keep * c + write * torch.tanh(z)
    n = keep * n + write
    return torch.sigmoid(o) * c / n, c, n, m
