"""The gated delta rule as a native CPU kernel behind `mx.custom_function`.

`kernels.py` says what it promises, `reference/delta_mlx.py` is the plain form. float32 only;
`ops_mlx.py` says what holds for all native ops. The kernel goes position by position, so
`chunk_size` changes nothing.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops.native.call_mlx import View, differentiable, threads, views


def delta_cell(
    q: array,
    k: array,
    v: array,
    log_decay: array,
    beta: array,
    *,
    chunk_size: int,
    state: array | None = None,
) -> tuple[array, array]:
    """Run the rule over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    given = () if state is None else (state,)
    h, last, *_ = _delta()(q, k, v, log_decay, beta, *given)
    return h, last


@lru_cache
def _delta() -> Callable[..., Any]:
    """(q, k, v, log_decay, beta, the state if there is one) -> h, last, what the gradient needs."""

    def forward(*arrays: View) -> tuple[View, ...]:
        inputs, state = arrays[:5], arrays[5] if len(arrays) > 5 else None
        (B, S, NH, DK), DV = inputs[0].shape, inputs[2].shape[-1]
        h, held = ops.empty((B, S, NH, DV)), ops.empty((B, S, NH, DV))
        last = ops.empty((B, NH, DK, DV))
        kept = ops.empty((B, NH, ops.decay_chunks(S=S, DK=DK), DK, DV))
        ops.delta(*inputs, state, h, last, kept, held, threads=threads())
        return h, last, kept, held

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        *given, dh, d_last = views(*primals[:5], *outputs[2:], *cotangents[:2])
        grads = [ops.empty(x.shape) for x in primals]
        d_state = grads[5] if len(grads) > 5 else None
        ops.delta_grad(*given, dh, d_last, *grads[:5], d_state, threads=threads())
        return grads

    return differentiable(forward, backward)
