"""The selective scan as a native CPU kernel behind `mx.custom_function`; float32 only.

`kernels.py` says what it promises, `reference/scan_mlx.py` is the plain form, `ops_mlx.py` says
what holds for all native ops.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops.native.call_mlx import View, differentiable, threads, views


def selective_scan(
    u: array, dt: array, A: array, Bt: array, Ct: array, *, state: array | None = None
) -> tuple[array, array]:
    """Run the recurrence over u (B, S, C) from `state` (B, C, N) or from zeros."""
    given = () if state is None else (state,)
    y, last, _ = _scan()(u, dt, A, Bt, Ct, *given)
    return y, last


@lru_cache
def _scan() -> Callable[..., Any]:
    """(u, dt, A, Bt, Ct, the state if there is one) -> y, last, what the gradient needs."""

    def forward(*arrays: View) -> tuple[View, View, View]:
        inputs, state = arrays[:5], arrays[5] if len(arrays) > 5 else None
        (B, S, C), N = inputs[0].shape, inputs[2].shape[1]
        y, last = ops.empty((B, S, C)), ops.empty((B, C, N))
        kept = ops.empty((ops.scan_kept(B=B, S=S, C=C, N=N),))
        ops.scan(*inputs, state, y, last, kept, threads=threads())
        return y, last, kept

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        *inputs, kept, dy, d_last = views(*primals[:5], outputs[2], *cotangents[:2])
        grads = [ops.empty(x.shape) for x in primals]
        d_state = grads[5] if len(grads) > 5 else None
        ops.scan_grad(*inputs, kept, dy, d_last, *grads[:5], d_state, threads=threads())
        return grads

    return differentiable(forward, backward)
