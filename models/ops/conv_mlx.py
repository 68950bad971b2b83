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
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K), which see the past.

    A tap that would reach over the first token of a document meets 0, as before the sequence.
    """
    B, S, C = x.shape
    K = w.shape[-1]
    past = mx.zeros((B, K - 1, C)) if state is None else state
    inputs = mx.concatenate([past.astype(mx.float32), x.astype(mx.float32)], 1)  # t at t + K - 1
    taps = [inputs[:, j : j + S] for j in range(K)]
    last = inputs[:, S:]
    if starts is not None:
        document = mx.pad(mx.cumsum(starts.astype(mx.int32), 1), [(0, 0), (K - 1, 0)])
        of_output = document[:, K - 1 :]
        for j in range(K - 1):
            within = document[:, j : j + S] == of_output
            taps[j] = mx.where(within[..., None], taps[j], 0.0)
        last = mx.where((document[:, S:] == document[:, -1:])[..., None], last, 0.0)
    y = b.astype(mx.float32)
    for j, tap in enumerate(taps):
        y = y + w[:, 0, j].astype(mx.float32) * tap
    return (y * mx.sigmoid(y) if silu else y).astype(x.dtype), last
