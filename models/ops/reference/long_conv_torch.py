"""The convolution as long as the sequence, in PyTorch; `kernels.py` says what it promises."""

import torch
from torch import Tensor


def long_conv(x: Tensor, f: Tensor) -> Tensor:
    """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S."""
    S = x.shape[1]
    n = 1 << (2 * S - 1).bit_length()
    spectrum = torch.fft.rfft(f[:, :S].float().T, n=n, dim=0)
    y: Tensor = torch.fft.irfft(torch.fft.rfft(x.float(), n=n, dim=1) * spectrum, n=n, dim=1)
    return y[:, :S].to(x.dtype)
