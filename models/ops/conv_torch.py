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
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
    B, S, C = x.shape
    K = w.shape[-1]
    past = x.new_zeros(B, K - 1, C) if state is None else state
    inputs = torch.cat([past.float(), x.float()], 1)  # position t is at t + K - 1
    taps = [inputs[:, j : j + S] for j in range(K)]
    if starts is not None:
        back = positions_back(starts, K)[..., None]
        taps = [torch.where(back >= K - 1 - j, tap, 0.0) for j, tap in enumerate(taps)]
    y = b.float()
    for j, tap in enumerate(taps):
        y = y + w[:, 0, j].float() * tap
    return (F.silu(y) if silu else y).to(x.dtype), last_inputs(inputs[:, S:], starts)


def positions_back(starts: Tensor, K: int) -> Tensor:
    """Return how many positions before its own each may see, at most K - 1; (B, S) int32."""
    S = starts.shape[1]
    document = F.pad(starts.int().cumsum(1), (K - 1, 0))
    of_output = document[:, K - 1 :]
    back = torch.zeros_like(of_output)
    for j in range(K - 1):
        back += document[:, j : j + S] == of_output
    return back.int()


def last_inputs(inputs: Tensor, starts: Tensor | None) -> Tensor:
    """Return the last K - 1 inputs (B, K - 1, C), those of earlier documents as zeros."""
    if starts is None:
        return inputs
    entries = inputs.shape[1]
    document = F.pad(starts.int().cumsum(1), (entries, 0))
    of_entry = document[:, document.shape[1] - entries :]
    return torch.where((of_entry == document[:, -1:])[..., None], inputs, 0.0)
