"""The layers around the cells as native CPU kernels behind `mx.custom_function`; float32 only.

`kernels.py` says what each promises, `reference/ops_mlx.py` and `conv_mlx.py` are the plain forms,
`metal/native/ops` holds the kernels. `ops_mlx.py` says what holds for all native ops.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops.activations import known
from mlxhog.models.ops.native.call_mlx import FAST_GEMM, View, differentiable, threads, views
from mlxhog.models.ops.reference import ops_mlx as reference_mlx


def layer_norm(x: array, w: array, eps: float) -> array:
    """Move x to mean 0 and variance 1 over the last axis, then scale by w."""
    result: array = _layer_norm(eps)(x, w)
    return result


def head_norm(h: array, w: array, eps: float) -> array:
    """Return w * LayerNorm(h), normalised over DH within each head and flat, (B, S, NH * DH)."""
    result: array = _layer_norm(eps)(h, w).flatten(-2)
    return result


def block_diagonal(
    x: array, weights: Sequence[array], biases: Sequence[array | None] | None = None
) -> tuple[array, ...]:
    """Map every slice of x by its block of each weight (G, out / G, in / G), then add a bias."""
    if not FAST_GEMM and not all(ops.is_small_block(*w.shape[1:]) for w in weights):
        return reference_mlx.block_diagonal(x, weights, biases)
    if biases is None:
        biases = (None,) * len(weights)
    biased = tuple(b is not None for b in biases)
    return tuple(_block_diagonal(biased)(x, *weights, *(b for b in biases if b is not None)))


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
    given = [state] if state is not None else []
    if starts is not None:
        given.append(starts.astype(mx.uint8))
    y, last = _causal_conv(state is not None, silu)(x, w, b, *given)
    return y, last


def activate(x: array, activation: str) -> array:
    """Return act(x)."""
    result: array = _activate(known(activation))(x)
    return result


def glu(gate: array, up: array, activation: str) -> array:
    """Return act(gate) * up."""
    result: array = _glu(known(activation))(gate, up)
    return result


def head_norm_skip_gate(h: array, c: array, z: array, w: array, skip: array, eps: float) -> array:
    """Return (w * LayerNorm(h) + skip * c) * silu(z), normalised over DV within each head."""
    result: array = _head_norm_skip_gate(eps)(h, c, z, w, skip)
    return result


@lru_cache
def _layer_norm(eps: float) -> Callable[..., Any]:
    def forward(x: View, w: View) -> View:
        out = ops.empty(x.shape)
        ops.layer_norm(x, w, out, eps=eps, threads=threads())
        return out

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        x, w, d_out = views(*primals, cotangent)
        dx, dw = ops.empty(x.shape), ops.empty(w.shape)
        ops.layer_norm_grad(x, w, d_out, dx, dw, eps=eps, threads=threads())
        return dx, dw

    return differentiable(forward, backward)


@lru_cache
def _block_diagonal(biased: tuple[bool, ...]) -> Callable[..., Any]:
    """(x, every weight, the biases that exist) -> every output."""
    count = len(biased)

    def forward(x: View, *parameters: View) -> list[View]:
        weights, biases = list(parameters[:count]), iter(parameters[count:])
        outs = [ops.empty((*x.shape[:-1], w.shape[0] * w.shape[1])) for w in weights]
        given = [next(biases) if has_bias else None for has_bias in biased]
        ops.block_diagonal(x, weights, given, outs, threads=threads())
        return outs

    def backward(primals: Any, cotangents: Any, _: Any) -> Any:
        x, *arrays = views(*primals[: count + 1], *cotangents)
        weights, d_outs = arrays[:count], arrays[count:]
        dx = ops.empty(x.shape)
        d_weights = [ops.empty(w.shape) for w in weights]
        d_biases = [
            ops.empty(d_out.shape[-1:]) if has_bias else None
            for d_out, has_bias in zip(d_outs, biased, strict=True)
        ]
        ops.block_diagonal_grad(x, weights, d_outs, dx, d_weights, d_biases, threads=threads())
        return [g for g in (dx, *d_weights, *d_biases) if g is not None]

    return differentiable(forward, backward)


@lru_cache
def _causal_conv(has_state: bool, silu: bool) -> Callable[..., Any]:
    """(x, w, b, the state if there is one, the starts if there are some) -> y, last."""

    def optional(given: Sequence[View]) -> tuple[View | None, View | None]:
        state = given[0] if has_state else None
        return state, given[-1] if len(given) > has_state else None

    def forward(x: View, w: View, b: View, *given: View) -> tuple[View, View]:
        y, last = ops.empty(x.shape), ops.empty((x.shape[0], w.shape[-1] - 1, x.shape[2]))
        ops.causal_conv(x, w, b, *optional(given), y, last, silu=silu, threads=threads())
        return y, last

    def backward(primals: Any, cotangents: Any, _: Any) -> Any:
        *arrays, dy, d_last = views(*primals, *cotangents)
        x, w, b, *given = arrays
        state, starts = optional(given)
        dx, dw, db = (ops.empty(a.shape) for a in (x, w, b))
        d_state = None if state is None else ops.empty(state.shape)
        ops.causal_conv_grad(
            x, w, b, state, starts, dy, d_last, dx, dw, db, d_state, silu=silu, threads=threads()
        )
        grads = [g for g in (dx, dw, db, d_state) if g is not None]
        return grads if starts is None else [*grads, mx.zeros_like(primals[-1])]

    return differentiable(forward, backward)


@lru_cache
def _activate(activation: str) -> Callable[..., Any]:
    def forward(x: View) -> View:
        out = ops.empty(x.shape)
        ops.activate(activation, x, out, threads=threads())
        return out

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        x, d_out = views(primals, cotangent)
        dx = ops.empty(x.shape)
        ops.activate_grad(activation, x, d_out, dx, threads=threads())
        return dx

    return differentiable(forward, backward)


@lru_cache
def _glu(activation: str) -> Callable[..., Any]:
    def forward(gate: View, up: View) -> View:
        out = ops.empty(gate.shape)
        ops.glu(activation, gate, up, out, threads=threads())
        return out

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        gate, up, d_out = views(*primals, cotangent)
        d_gate, d_up = ops.empty(gate.shape), ops.empty(up.shape)
        ops.glu_grad(activation, gate, up, d_out, d_gate, d_up, threads=threads())
        return d_gate, d_up

    return differentiable(forward, backward)


@lru_cache
def _head_norm_skip_gate(eps: float) -> Callable[..., Any]:
    def forward(h: View, c: View, z: View, w: View, skip: View) -> View:
        out = ops.empty(z.shape)
        ops.head_norm_skip_gate(h, c, z, w, skip, out, eps=eps, threads=threads())
        return out

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        h, c, z, w, skip, d_out = views(*primals, cotangent)
        dh, dc, dz, dw, dskip = (ops.empty(x.shape) for x in (h, c, z, w, skip))
        ops.head_norm_skip_gate_grad(
            h, c, z, w, skip, d_out, dh, dc, dz, dw, dskip, eps=eps, threads=threads()
        )
        return dh, dc, dz, dw, dskip

    return differentiable(forward, backward)
