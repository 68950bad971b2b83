"""The ops as native CPU kernels behind `mx.custom_function`; float32 only.

`kernels.py` says what each op promises, `reference/ops_mlx.py` is the plain form they are tested
against, `metal/native/ops` holds the kernels. An op evaluates its inputs when it is called, so keep
these out of `mx.compile`. MLX has no uninitialised arrays: a result is computed into a NumPy
buffer, still in the cache when `mx.array` copies it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog._native import ops
from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.native.attention_mlx import attention as attention
from mlxhog.models.ops.native.attention_mlx import rope as rope
from mlxhog.models.ops.native.call_mlx import FAST_GEMM as FAST_GEMM
from mlxhog.models.ops.native.call_mlx import View as _View
from mlxhog.models.ops.native.call_mlx import differentiable as _differentiable
from mlxhog.models.ops.native.call_mlx import set_threads as set_threads
from mlxhog.models.ops.native.call_mlx import threads as _threads
from mlxhog.models.ops.native.call_mlx import views as _views
from mlxhog.models.ops.native.decay_mlx import decay_cell as decay_cell
from mlxhog.models.ops.native.delta_mlx import delta_cell as delta_cell
from mlxhog.models.ops.native.layers_mlx import activate as activate
from mlxhog.models.ops.native.layers_mlx import block_diagonal as block_diagonal
from mlxhog.models.ops.native.layers_mlx import causal_conv as causal_conv
from mlxhog.models.ops.native.layers_mlx import glu as glu
from mlxhog.models.ops.native.layers_mlx import head_norm as head_norm
from mlxhog.models.ops.native.layers_mlx import head_norm_skip_gate as head_norm_skip_gate
from mlxhog.models.ops.native.layers_mlx import layer_norm as layer_norm
from mlxhog.models.ops.native.long_conv_mlx import long_conv as long_conv
from mlxhog.models.ops.native.scan_mlx import selective_scan as selective_scan
from mlxhog.models.ops.native.slstm_mlx import slstm_cell as slstm_cell
from mlxhog.models.ops.reference import ops_mlx as reference_mlx
from mlxhog.models.ops.reference.quantized_mlx import Quantized

ops.keep_freed_memory()

xp = arrays_mlx


def rms_norm(x: array, w: array, eps: float) -> array:
    """Scale x to unit mean square over the last axis, then by w."""
    result: array = _rms_norm(eps)(x, w)
    return result


def swiglu(gate: array, up: array) -> array:
    """Return silu(gate) * up."""
    result: array = _swiglu()(gate, up)
    return result


def soft_cap(x: array, c: float) -> array:
    """Return c * tanh(x / c)."""
    result: array = _soft_cap(c)(x)
    return result


def head_norm_gate(h: array, o: array, w: array, eps: float) -> array:
    """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head."""
    result: array = _head_norm_gate(eps)(h, o, w)
    return result


def capped_cross_entropy(
    raw_logits: array, labels: array, cap: float | None
) -> tuple[array, array]:
    """Summed cross entropy in nats of the capped logits, and the number of labels not -100."""
    nats, count, _ = _cross_entropy(cap)(raw_logits, labels.astype(mx.int32))
    return nats, count


def linears(
    x: array, weights: Sequence[array | Quantized], biases: Sequence[array | None] | None = None
) -> tuple[array, ...]:
    """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
    if not FAST_GEMM or any(isinstance(w, Quantized) for w in weights):
        return reference_mlx.linears(x, weights, biases)
    if biases is None:
        biases = (None,) * len(weights)
    biased = tuple(b is not None for b in biases)
    return tuple(_linears(biased)(x, *weights, *(b for b in biases if b is not None)))


def mlstm_cell(
    q: array,
    k: array,
    v: array,
    i: array,
    f: array,
    *,
    chunk_size: int,
    eps: float,
    state: Sequence[array] | None = None,
) -> tuple[array, tuple[array, array, array]]:
    """Run the cell over (B, S, NH, ...), any S, from `state` (C, n, m) or from zeros."""
    if state is None:
        state = _zero_state(*q.shape, v.shape[-1])
    h, C, n, m, *_ = _mlstm_cell(chunk_size, eps)(q, k, v, i, f, *state)
    return h, (C, n, m)


@lru_cache
def _rms_norm(eps: float) -> Callable[..., Any]:
    def forward(x: _View, w: _View) -> _View:
        out = ops.empty(x.shape)
        ops.rms_norm(x, w, out, eps=eps, threads=_threads())
        return out

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        x, w, d_out = _views(*primals, cotangent)
        dx, dw = ops.empty(x.shape), ops.empty(w.shape)
        ops.rms_norm_grad(x, w, d_out, dx, dw, eps=eps, threads=_threads())
        return dx, dw

    return _differentiable(forward, backward)


@lru_cache
def _swiglu() -> Callable[..., Any]:
    def forward(gate: _View, up: _View) -> _View:
        out = ops.empty(gate.shape)
        ops.swiglu(gate, up, out, threads=_threads())
        return out

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        gate, up, d_out = _views(*primals, cotangent)
        d_gate, d_up = ops.empty(gate.shape), ops.empty(up.shape)
        ops.swiglu_grad(gate, up, d_out, d_gate, d_up, threads=_threads())
        return d_gate, d_up

    return _differentiable(forward, backward)


@lru_cache
def _soft_cap(c: float) -> Callable[..., Any]:
    def forward(x: _View) -> _View:
        out = ops.empty(x.shape)
        ops.soft_cap(x, out, cap=c, threads=_threads())
        return out

    def backward(_: Any, cotangent: Any, outputs: Any) -> Any:
        out, d_out = _views(outputs, cotangent)
        dx = ops.empty(out.shape)
        ops.soft_cap_grad(out, d_out, dx, cap=c, threads=_threads())
        return dx

    return _differentiable(forward, backward)


@lru_cache
def _head_norm_gate(eps: float) -> Callable[..., Any]:
    def forward(h: _View, o: _View, w: _View) -> _View:
        out = ops.empty(o.shape)
        ops.head_norm_gate(h, o, w, out, eps=eps, threads=_threads())
        return out

    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        h, o, w, d_out = _views(*primals, cotangent)
        dh, do, dw = ops.empty(h.shape), ops.empty(o.shape), ops.empty(w.shape)
        ops.head_norm_gate_grad(h, o, w, d_out, dh, do, dw, eps=eps, threads=_threads())
        return dh, do, dw

    return _differentiable(forward, backward)


@lru_cache
def _cross_entropy(cap: float | None) -> Callable[..., Any]:
    """(logits, labels) -> nats, count, and the gradient of nats, which costs no second pass."""

    def forward(logits: _View, labels: _View) -> tuple[_View, _View, _View]:
        gradient = ops.empty(logits.shape)
        nats, count = ops.cross_entropy(logits, labels, gradient, cap=cap, threads=_threads())
        return np.array(nats, np.float32), np.array(count, np.int32), gradient

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return outputs[2] * cotangents[0], mx.zeros_like(primals[1])

    return _differentiable(forward, backward)


@lru_cache
def _linears(biased: tuple[bool, ...]) -> Callable[..., Any]:
    """(x, every weight, the biases that exist) -> every output."""
    count = len(biased)

    def forward(x: _View, *parameters: _View) -> list[_View]:
        weights, biases = list(parameters[:count]), iter(parameters[count:])
        outs = [ops.empty((*x.shape[:-1], w.shape[0])) for w in weights]
        given = [next(biases) if has_bias else None for has_bias in biased]
        ops.linears(x, weights, given, outs, threads=_threads())
        return outs

    def backward(primals: Any, cotangents: Any, _: Any) -> Any:
        x, *arrays = _views(*primals[: count + 1], *cotangents)
        weights, d_outs = arrays[:count], arrays[count:]
        dx = ops.empty(x.shape)
        d_weights = [ops.empty(w.shape) for w in weights]
        d_biases = [
            ops.empty(w.shape[:1]) if has_bias else None
            for w, has_bias in zip(weights, biased, strict=True)
        ]
        ops.linears_grad(x, weights, d_outs, dx, d_weights, d_biases, threads=_threads())
        return [g for g in (dx, *d_weights, *d_biases) if g is not None]

    return _differentiable(forward, backward)


@lru_cache
def _zero_state(B: int, S: int, NH: int, DK: int, DV: int) -> tuple[array, array, array]:
    state = (mx.zeros((B, NH, DK, DV)), mx.zeros((B, NH, DK)), mx.zeros((B, NH)))
    mx.eval(state)
    return state


@lru_cache
def _mlstm_cell(chunk_size: int, eps: float) -> Callable[..., Any]:
    """(q, k, v, i, f, C, n, m) -> h, C, n, m, and what the backward pass needs."""

    def forward(
        q: _View, k: _View, v: _View, i: _View, f: _View, C0: _View, n0: _View, m0: _View
    ) -> tuple[_View, ...]:
        B, S, NH, DK = q.shape
        stride = ops.mlstm_stride(DK=DK, chunk=chunk_size)
        NC, DV = -(-S // chunk_size), v.shape[-1]
        # The state before every chunk (C: before every stride-th), and after the last.
        C = ops.empty((B, NH, -(-NC // stride) + 1, DK, DV))
        n, m = ops.empty((B, NH, NC + 1, DK)), ops.empty((B, NH, NC + 1))
        C[:, :, 0], n[:, :, 0], m[:, :, 0] = C0, n0, m0
        h, den = ops.empty(v.shape), ops.empty(i.shape)
        how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps}
        ops.mlstm(q, k, v, i, f, h, den, C, n, m, **how, threads=_threads())
        last = (x[:, :, -1] for x in (C, n, m))
        return h, *last, den, C, n, m

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        h, _, _, _, *saved = outputs
        arrays = _views(*primals[:5], h, *saved, *cotangents[:4])
        inputs, results, (dh, *d_last) = arrays[:5], arrays[5:10], arrays[10:]
        # The kernel overwrites the state's gradient.
        d_state = [np.array(d) for d in d_last]
        grads = [ops.empty(x.shape) for x in inputs]
        stride = ops.mlstm_stride(DK=inputs[0].shape[-1], chunk=chunk_size)
        how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps}
        ops.mlstm_grad(*inputs, *results, dh, *grads, *d_state, **how, threads=_threads())
        return *grads, *d_state

    return _differentiable(forward, backward)
