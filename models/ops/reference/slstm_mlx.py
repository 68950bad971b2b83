"""The sLSTM cell in plain MLX; `slstm_numpy.py` has the equations, `kernels.py` the promise."""

from collections.abc import Sequence

import mlx.core as mx
from mlx.core import array


def slstm_cell(
    i: array,
    f: array,
    z: array,
    o: array,
    R: array,
    b: array,
    *,
    state: Sequence[array] | None = None,
    starts: array | None = None,
) -> tuple[array, tuple[array, array, array, array]]:
    """Run the cell over (B, S, NH, DH), any S, from `state` (h, c, n, m) or from zeros."""
    B, S, NH, DH = i.shape
    given = mx.stack([x.astype(mx.float32) for x in (i, f, z, o)], 3)
    given = given + b.astype(mx.float32).reshape(4, NH, DH).swapaxes(0, 1)
    R_t = R.astype(mx.float32).swapaxes(1, 2)
    if state is None:
        h = mx.zeros((B, NH, DH))
        state = (h, h, h, h)
    h, c, n, m = state
    outputs = []
    for t in range(S):
        if starts is not None:
            first = starts[:, t, None, None] != 0
            h, c, n, m = (mx.where(first, 0.0, x) for x in (h, c, n, m))
        mixed = (h.swapaxes(0, 1) @ R_t).swapaxes(0, 1).reshape(B, NH, 4, DH)
        h, c, n, m = _step(given[:, t] + mixed, c, n, m)
        outputs.append(h)
    return mx.stack(outputs, 1), (h, c, n, m)


def _step(pre: array, c: array, n: array, m: array) -> tuple[array, array, array, array]:
    """The state after one step; pre (B, NH, 4, DH)."""
    i, f, z, o = (pre[:, :, gate] for gate in range(4))
    lf = m - mx.logaddexp(-f, 0)
    m = mx.where(n == 0, i, mx.maximum(i, lf))
    write = mx.exp(i - m)
    keep = mx.exp(mx.minimum(lf - m, 0.0))
    c = keep * c + write * mx.tanh(z)
    n = keep * n + write
    return mx.sigmoid(o) * c / n, c, n, m
