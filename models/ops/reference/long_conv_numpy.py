"""The convolution as long as the sequence, in float64 NumPy, position by position."""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def long_conv(x: Float, f: Float) -> Float:
    """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S."""
    y = np.empty(x.shape)
    for t in range(x.shape[1]):
        y[:, t] = np.einsum("bjc,cj->bc", x[:, t::-1], f[:, : t + 1])
    return y
