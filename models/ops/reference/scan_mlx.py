"""The selective scan in MLX, in log2(S) rounds; `kernels.py` says what it promises.

Two positions of S_t = a_t S_{t-1} + x_t are one of half as many: (a' a, a' x + x'). The states
after every second position come from the halved sequence, the others from those before them. No
decay is divided by, so nothing overflows.

Source: Gu and Dao 2023, Mamba, arXiv:2312.00752; Blelloch 1990, Prefix Sums and Their Applications.
"""

import mlx.core as mx
from mlx.core import array


def selective_scan(
    u: array, dt: array, A: array, Bt: array, Ct: array, *, state: array | None = None
) -> tuple[array, array]:
    """Run the recurrence over u (B, S, C) from `state` (B, C, N) or from zeros."""
    u, dt, A, Bt, Ct = (x.astype(mx.float32) for x in (u, dt, A, Bt, Ct))
    S = u.shape[1]
    a = mx.exp(dt[..., None] * A)
    x = (dt * u)[..., None] * Bt[:, :, None]
    if state is not None:
        x = mx.concatenate([x[:, :1] + a[:, :1] * state[:, None], x[:, 1:]], 1)
    rest = [(0, 0), (0, (1 << (S - 1).bit_length()) - S), (0, 0), (0, 0)]
    states = _scan(mx.pad(a, rest), mx.pad(x, rest))[:, :S]
    return (states @ Ct[..., None])[..., 0], states[:, -1]


def _scan(a: array, x: array) -> array:
    """States after every position of a, x (B, S, C, N) from zeros; S a power of 2."""
    if x.shape[1] == 1:
        return x
    B, S, C, N = x.shape
    a_first, a_second = mx.unstack(a.reshape(B, S // 2, 2, C, N), axis=2)
    x_first, x_second = mx.unstack(x.reshape(B, S // 2, 2, C, N), axis=2)
    second = _scan(a_second * a_first, a_second * x_first + x_second)
    before = mx.pad(second[:, :-1], [(0, 0), (1, 0), (0, 0), (0, 0)])
    return mx.stack([x_first + a_first * before, second], 2).flatten(1, 2)
