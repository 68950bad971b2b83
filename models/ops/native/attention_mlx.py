"""Rotary positions and causal attention as native CPU kernels behind `mx.custom_function`.

`kernels.py` says what they promise, `reference/attention_mlx.py` is the plain form. float32 only;
`ops_mlx.py` says what holds for all native ops.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops.native.call_mlx import View, differentiable, threads, views


def rope(x: array, base: float, offset: array | None = None) -> array:
    """Turn the two halves of every head of x (B, S, NH, DH) against each other."""
    counts = () if offset is None else (offset.astype(mx.int32),)
    result: array = _rope(base)(x, *counts)
    return result


def attention(
    q: array, k: array, v: array, *, window: int | None = None, lengths: array | None = None
) -> array:
    """Attend from q (B, S, NH, DH) to the last keys up to each position of k, v (B, L, NH, DH)."""
    counts = () if lengths is None else (lengths.astype(mx.int32),)
    result: array = _attention(window)(q, k, v, *counts)[0]
    return result


@lru_cache
def _rope(base: float) -> Callable[..., Any]:
    def turned(x: View, *offset: View, back: bool) -> View:
        out = ops.empty(x.shape)
        how: dict[str, Any] = {"base": base, "back": back, "threads": threads()}
        ops.rope(x, offset[0] if offset else None, out, **how)
        return out

    def forward(x: View, *offset: View) -> View:
        return turned(x, *offset, back=False)

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        offset = primals[1:] if isinstance(primals, tuple | list) else ()
        dx = turned(*views(cotangent, *offset), back=True)
        return dx, *(mx.zeros_like(x) for x in offset)

    return differentiable(forward, backward)


@lru_cache
def _attention(window: int | None) -> Callable[..., Any]:
    """(q, k, v, the lengths if there are some) -> out, lse."""

    def forward(q: View, k: View, v: View, *lengths: View) -> tuple[View, View]:
        B, S, NH, _ = q.shape
        out, lse = ops.empty(q.shape), ops.empty((B, NH, S))
        how: dict[str, Any] = {"window": window, "threads": threads()}
        ops.attention(q, k, v, lengths[0] if lengths else None, out, lse, **how)
        return out, lse

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        q, k, v, lse, d_out, *lengths = views(*primals[:3], outputs[1], cotangents[0], *primals[3:])
        grads = [ops.empty(x.shape) for x in (q, k, v)]
        how: dict[str, Any] = {"window": window, "threads": threads()}
        counts = lengths[0] if lengths else None
        ops.attention_grad(q, k, v, counts, lse, d_out, *grads, **how)
        return *grads, *(mx.zeros_like(x) for x in primals[3:])

    return differentiable(forward, backward)
