"""The causal depthwise convolution in MLX; `kernels.py` says what it promises."""

import mlx.core as mx
from mlx.core import array


def causal_conv(
    x: array,
    w: array,
    b: array,
    *,
    state: array | None = None,
    starts: array | None = None,
    silu: bool,
) -> tuple[array, array]:
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
    B, S, C = x.shape
    K = w.shape[-1]
    past = mx.zeros((B, K - 1, C)) if state is None else state
    inputs = mx.concatenate([past.astype(mx.float32), x.astype(mx.float32)], 1)  # t at t + K - 1
    taps = [inputs[:, j : j + S] for j in range(K)]
    if starts is not None:
        back = positions_back(starts, K)[..., None]
        taps = [mx.where(back >= K - 1 - j, tap, 0.0) for j, tap in enumerate(taps)]
    y = b.astype(mx.float32)
    for j, tap in enumerate(taps):
        y = y + w[:, 0, j].astype(mx.float32) * tap
    return (y * mx.sigmoid(y) if silu else y).astype(x.dtype), last_inputs(inputs[:, S:], starts)


def positions_back(starts: array, K: int) -> array:
    """Return how many positions before its own each may see, at most K - 1; (B, S) int32."""
    S = starts.shape[1]
    document = mx.pad(mx.cumsum(starts.astype(mx.int32), 1), [(0, 0), (K - 1, 0)])
    of_output = document[:, K - 1 :]
    back = mx.zeros_like(of_output)
    for j in range(K - 1):
        back += document[:, j : j + S] == of_output
    return back


def last_inputs(inputs: array, starts: array | None) -> array:
    """Return the last K - 1 inputs (B, K - 1, C), those of earlier documents as zeros."""
    if starts is None:
        return inputs
    entries = inputs.shape[1]
    document = mx.pad(mx.cumsum(starts.astype(mx.int32), 1), [(0, 0), (entries, 0)])
    of_entry = document[:, document.shape[1] - entries :]
    return mx.where((of_entry == document[:, -1:])[..., None], inputs, 0.0)
