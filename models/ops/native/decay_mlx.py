"""The linear recurrence with decay as a native CPU kernel behind `mx.custom_function`.

`kernels.py` says what it promises, `reference/decay_mlx.py` is the plain form. float32 only;
`ops_mlx.py` says what holds for all native ops. The kernel goes position by position, so
`chunk_size` changes nothing.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops.native.call_mlx import View, differentiable, threads, views


def decay_cell(
    q: array,
    k: array,
    v: array,
    log_decay: array,
    *,
    scale: float,
    chunk_size: int,
    state: array | None = None,
) -> tuple[array, array]:
    """Run the recurrence over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    given = () if state is None else (state,)
    h, last, _ = _decay(scale)(q, k, v, log_decay, *given)
    return h, last


@lru_cache
def _decay(scale: float) -> Callable[..., Any]:
    """(q, k, v, log_decay, the state if there is one) -> h, last, what the gradient needs."""

    def forward(
        q: View, k: View, v: View, log_decay: View, *state: View
    ) -> tuple[View, View, View]:
        B, S, NH, DK = q.shape
        DV = v.shape[-1]
        h, last = ops.empty(v.shape), ops.empty((B, NH, DK, DV))
        kept = ops.empty((B, NH, ops.decay_chunks(S=S, DK=DK), DK, DV))
        start = state[0] if state else None
        ops.decay(q, k, v, log_decay, start, h, last, kept, scale=scale, threads=threads())
        return h, last, kept

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        *inputs, kept, dh, d_last = views(*primals[:4], outputs[2], *cotangents[:2])
        grads = [ops.empty(x.shape) for x in primals]
        d_state = grads[4] if len(grads) > 4 else None
        how: dict[str, Any] = {"scale": scale, "threads": threads()}
        ops.decay_grad(*inputs, kept, dh, d_last, *grads[:4], d_state, **how)
        return grads

    return differentiable(forward, backward)
