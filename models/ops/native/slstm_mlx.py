"""The sLSTM cell as a native CPU kernel behind `mx.custom_function`; float32 only.

`kernels.py` says what it promises, `slstm_mlx.py` is the plain form, `metal/native/ops/slstm.h` the
kernel. What the backward pass needs of every step is computed again by it: MLX would copy those
seven arrays after each forward pass, also where nothing is differentiated.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops.native.call_mlx import View, differentiable, threads, views


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
    if state is None:
        zeros = mx.zeros((i.shape[0], *i.shape[2:]))
        state = (zeros, zeros, zeros, zeros)
    given = () if starts is None else (starts.astype(mx.uint8),)
    h, h_last, c, n, m = _cell()(i, f, z, o, R, b, *state, *given)
    return h, (h_last, c, n, m)


@lru_cache
def _cell() -> Callable[..., Any]:
    """(i, f, z, o, R, b, h0, c0, n0, m0, starts if there are any) -> h and the last h, c, n, m."""

    def forward(*inputs: View) -> tuple[View, ...]:
        *given, h0, c0, n0, m0, starts = _with_starts(inputs)
        h, last = ops.empty(given[0].shape), [np.array(x) for x in (h0, c0, n0, m0)]
        ops.slstm(*(*given, starts, h, None, *last), threads=threads())
        return h, *last

    def backward(primals: Any, cotangents: Any, _: Any) -> Any:
        *given, h0, c0, n0, m0, starts = _with_starts(views(*primals))
        R, (dh, *d_last) = given[4], views(*cotangents)
        h, tape = ops.empty(dh.shape), ops.empty((*dh.shape[:3], ops.SLSTM_TAPE, dh.shape[3]))
        last = [np.array(x) for x in (h0, c0, n0, m0)]
        ops.slstm(*(*given, starts, h, tape, *last), threads=threads())
        grads = [ops.empty(x.shape) for x in given]
        # The kernel overwrites the state's gradient.
        d_state = [np.array(x) for x in d_last]
        saved = (R, starts, h0, c0, n0, h, tape)
        ops.slstm_grad(*saved, dh, *grads, *d_state, threads=threads())
        no_gradient = [mx.zeros_like(x) for x in primals[10:]]
        return *grads, *d_state, *no_gradient

    return differentiable(forward, backward)


def _with_starts(inputs: Sequence[View]) -> list[Any]:
    """The inputs as the kernel wants them, the last one None where no document starts."""
    return [*inputs, *([None] if len(inputs) == 10 else [])]
