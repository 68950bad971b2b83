"""The eager operators in MLX, as far as `Ops` leaves them to the framework.

Some have hand-written VJPs, each one expression of values that are saved anyway: MLX's own VJP
shares subexpressions with the forward pass, so `mx.compile` fuses less.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.arrays import Arrays
from mlxhog.models.ops.arrays_mlx import with_vjp
from mlxhog.models.ops.frozen import FrozenWeight
from mlxhog.models.ops.operators import Ops

_ROOT_2_PI = 0.7978845608028654
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_FEW_ROWS = 4  # with more, a dequantized weight is faster on a CPU
_SAFE_CAP = 60.0
"""Largest cap of logits whose exponentials have a finite sum in float32, over 10^10 tokens."""


def _swiglu_gradients(inputs: tuple[array, array], dy: array, _: array) -> tuple[array, array]:
    gate, up = inputs
    s = mx.sigmoid(gate)
    return dy * up * s * (1 + gate * (1 - s)), dy * gate * s


@with_vjp(_swiglu_gradients)
def _swiglu(gate: array, up: array) -> array:
    return gate * mx.sigmoid(gate) * up


def _gated_gradients(inputs: Any, dy: array, y: array) -> tuple[array, array, array]:
    o, w, normed = inputs
    s = mx.sigmoid(o)
    dw = (dy * normed * s).reshape(-1, w.shape[0]).sum(0)
    return dy * y * (1 - s), dw, dy * s * w


@with_vjp(_gated_gradients)
def _gated(o: array, w: array, normed: array) -> array:
    return mx.sigmoid(o) * (w * normed)


@lru_cache
def _soft_cap(c: float) -> Callable[[array], array]:
    """Return the operator with a VJP by its result: MLX's own computes a cosh."""
    return with_vjp(lambda _, dy, y: dy * (1 - mx.square(y / c)))(lambda x: c * mx.tanh(x / c))


def _two_linears_gradients(
    xab: tuple[array, array, array], d_results: tuple[array, array], _: Any
) -> tuple[array, array, array]:
    """Return the gradients; that of x is accumulated by the second matmul."""
    x, a, b = xab
    da, db = (dy.reshape(-1, dy.shape[-1]) for dy in d_results)
    rows = x.reshape(-1, x.shape[-1])
    return mx.addmm(da @ a, db, b).reshape(x.shape), da.T @ rows, db.T @ rows


@with_vjp(_two_linears_gradients)
def _two_linears(x: array, a: array, b: array) -> tuple[array, array]:
    return x @ a.T, x @ b.T


def _is_fast_quantized(x: array, w: FrozenWeight) -> bool:
    """Whether MLX multiplies by a quantized weight fast: 2 GFLOP/s on a CPU."""
    if not w.bits or x.dtype == mx.bfloat16:  # it wants scales in the dtype of x
        return False
    return x.size // x.shape[-1] <= _FEW_ROWS or mx.default_device() == mx.gpu


class MLXOps(Ops):
    """The operators on arrays of any device."""

    xp = cast(Arrays, arrays_mlx)
    activations: Mapping[str, Callable[[array], array]] = {
        "gelu": lambda x: 0.5 * x * (1 + mx.erf(x * 0.5**0.5)),
        "gelu_tanh": lambda x: 0.5 * x * (1 + mx.tanh(_ROOT_2_PI * (x + 0.044715 * x**3))),
        "silu": lambda x: x * mx.sigmoid(x),
        "relu": lambda x: mx.maximum(x, 0),
        "relu^2": lambda x: mx.maximum(x, 0) ** 2,
        "sigmoid": mx.sigmoid,
        "selu": lambda x: (
            _SELU_SCALE * mx.where(x > 0, x, _SELU_ALPHA * mx.expm1(mx.minimum(x, 0)))
        ),
        "softplus": lambda x: mx.logaddexp(x, 0),
    }

    def sum_after(self, a: array) -> array:
        return mx.cumsum(a, -2, reverse=True, inclusive=False)

    def layer_norm(self, x: array, w: array | None, eps: float) -> array:
        return mx.fast.layer_norm(x, w, None, eps)

    def rms_norm(self, x: array, w: array, eps: float) -> array:
        return mx.fast.rms_norm(x, w, eps)

    def head_norm_gate(self, h: array, o: array, w: array, eps: float) -> array:
        return _gated(o, w, self.layer_norm(h, None, eps).reshape(o.shape))

    def swiglu(self, gate: array, up: array) -> array:
        return _swiglu(gate, up)

    def soft_cap(self, x: array, cap: float) -> array:
        return _soft_cap(cap)(x)

    def log_total(self, logits: array, cap: float | None) -> array:
        """Skip logsumexp where the cap allows it: its VJP computes one exp more."""
        if cap is None or cap > _SAFE_CAP:
            return mx.logsumexp(logits, -1)
        return mx.log(mx.exp(logits).sum(-1))

    def rope(self, x: array, base: float, offset: array | None = None) -> array:
        at = 0 if offset is None else offset
        how: dict[str, Any] = {"traditional": False, "base": base, "scale": 1.0, "offset": at}
        return mx.fast.rope(x.swapaxes(1, 2), x.shape[-1], **how).swapaxes(1, 2)

    def attend(self, q: array, k: array, v: array, attn_mask: array | None) -> array:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        h = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=q.shape[-1] ** -0.5, mask="causal" if attn_mask is None else attn_mask
        )
        return h.swapaxes(1, 2)

    def linear(self, x: array, w: array) -> array:
        return cast(array, self.xp.linear(x.astype(w.dtype), w).astype(x.dtype))

    def frozen_product(self, x: array, w: FrozenWeight) -> array:
        if not _is_fast_quantized(x, w):
            return cast(array, super().frozen_product(x, w))
        packed, scales, offsets = w.parts
        return mx.quantized_matmul(x, packed, scales, offsets, transpose=True, **w.how)

    def frozen_product_grad(self, dy: array, w: FrozenWeight) -> array:
        if not _is_fast_quantized(dy, w):
            return cast(array, super().frozen_product_grad(dy, w))
        packed, scales, offsets = w.parts
        return mx.quantized_matmul(dy, packed, scales, offsets, transpose=False, **w.how)

    def dense_linears(
        self, x: array, weights: Sequence[Any], biases: Sequence[Any] | None = None
    ) -> Sequence[array]:
        """Return x W^T + b; if gradients follow, weights of one dtype share a matmul.

        Each matmul is three kernels with its gradients, and their gradients of x are summed.
        """
        biases, by_type = biases or [None] * len(weights), dict[object, list[int]]()
        for place, (w, b) in enumerate(zip(weights, biases, strict=True)):
            alike = b is None or b.dtype == w.dtype
            by_type.setdefault(w.dtype if alike else place, []).append(place)
        ys: dict[int, array] = {}
        for places in by_type.values():
            own = [weights[place] for place in places], [biases[place] for place in places]
            together = len(places) > 1 and arrays_mlx.differentiable.get()
            parts = self._together(x, *own) if together else super().dense_linears(x, *own)
            ys |= dict(zip(places, parts, strict=True))
        return [ys[place] for place in range(len(weights))]

    def _together(
        self, x: array, weights: Sequence[array], biases: Sequence[array | None]
    ) -> Sequence[array]:
        """Return x W^T + b of weights of one dtype; more than two are copied into one matrix.

        The copy of an mLSTM layer's six weights takes less time than five more matmuls and their
        sum, that of the two large ones of a feed-forward layer more.
        """
        cast_x = x.astype(weights[0].dtype)
        if len(weights) == 2:
            ys = [y.astype(x.dtype) for y in _two_linears(cast_x, *weights)]
            return [y if b is None else y + b for y, b in zip(ys, biases, strict=True)]
        bias = None
        if any(b is not None for b in biases):
            zeros = (mx.array(np.zeros(len(w), np.float32)) for w in weights)
            bias = mx.concatenate(
                [z if b is None else b for z, b in zip(zeros, biases, strict=True)]
            )
        y = self.xp.linear(cast_x, mx.concatenate(list(weights)), bias).astype(x.dtype)
        return list(self.xp.split(y, list(accumulate(map(len, weights)))[:-1], -1))


OPS = MLXOps()
