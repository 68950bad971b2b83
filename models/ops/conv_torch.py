"""The causal depthwise convolution in PyTorch; `kernels.py` says what it promises."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K), which see the past.

    A tap that would reach over the first token of a document meets 0, as before the sequence.
    """
    B, S, C = x.shape
    K = w.shape[-1]
    past = x.new_zeros(B, K - 1, C) if state is None else state
    inputs = torch.cat([past.float(), x.float()], 1)  # position t is at t + K - 1
    taps = [inputs[:, j : j + S] for j in range(K)]
    last = inputs[:, S:]
    if starts is not None:
        document = F.pad(starts.long().cumsum(1), (K - 1, 0))
        of_output = document[:, K - 1 :]
        for j in range(K - 1):
            within = document[:, j : j + S] == of_output
            taps[j] = torch.where(within[..., None], taps[j], 0.0)
        last = torch.where((document[:, S:] == document[:, -1:])[..., None], last, 0.0)
    y = b.float()
    for j, tap in enumerate(taps):
        y = y + w[:, 0, j].float() * tap
    return (F.silu(y) if silu else y).to(x.dtype), last
