"""The plain operators in MLX, as far as `plain.py` leaves them to the framework."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.arrays import Arrays
from mlxhog.models.ops.kernels import Ops
from mlxhog.models.ops.reference.plain import PlainForm
from mlxhog.models.ops.reference.quantized_mlx import Quantized

_ROOT_2_PI = 0.7978845608028654
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


class MLXPlainForm(PlainForm):
    """The operators on arrays of any device; a weight of `linears` may be quantised."""

    xp = cast(Arrays[array], arrays_mlx)
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

    def running_max(self, u: array) -> array:
        """Return the largest of u up to each position of the last axis."""
        held = mx.stop_gradient(u)
        top = mx.cummax(held, -1)
        latest = mx.cummax(mx.where(held == top, mx.arange(u.shape[-1]), 0), -1)
        return mx.take_along_axis(u, latest, -1)

    def sum_after(self, a: array) -> array:
        """Return the sum of a (..., L, D) over the positions after each."""
        return mx.cumsum(a, -2, reverse=True, inclusive=False)

    def normalised(self, x: array, eps: float, w: array | None = None) -> array:
        """Return LayerNorm(x) over the last axis in float32, times w."""
        return mx.fast.layer_norm(x.astype(mx.float32), w, None, eps)

    def product(self, x: array, w: array | Quantized) -> array:
        """Return x W^T, computed in the type of w and returned in that of x."""
        if isinstance(w, Quantized):
            return w.product(x)
        return self.xp.linear(x.astype(w.dtype), w).astype(x.dtype)

    def attend(self, q: array, k: array, v: array, seen: array | None) -> array:
        """Attend where `seen` (..., S, L); None is causal with as many keys as queries."""
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        h = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=q.shape[-1] ** -0.5, mask="causal" if seen is None else seen
        )
        return h.swapaxes(1, 2)

    def soft_cap(self, x: array, c: float) -> array:
        return _soft_cap(c)(x) if arrays_mlx.differentiable.get() else super().soft_cap(x, c)

    def log_total(self, logits: array, cap: float | None) -> array:
        """Return log(sum(e^logits)); the gradient of exp is exp, that of logsumexp one exp more."""
        if cap is None or cap > _SAFE_CAP:
            return mx.logsumexp(logits, -1)
        return mx.log(mx.exp(logits).sum(-1))

    def rms_norm(self, x: array, w: array, eps: float) -> array:
        return mx.fast.rms_norm(x, w, eps)

    def head_norm_skip_gate(
        self, h: array, c: array, z: array, w: array, skip: array, eps: float
    ) -> array:
        normed = self.normalised(h, eps).astype(z.dtype)
        return (w * normed.reshape(z.shape) + skip * c) * z * mx.sigmoid(z)

    def rope(self, x: array, base: float, offset: array | None) -> array:
        turned = mx.fast.rope(
            x.swapaxes(1, 2),
            x.shape[-1],
            traditional=False,
            base=base,
            scale=1.0,
            offset=0 if offset is None else offset,
        )
        return turned.swapaxes(1, 2)


_SAFE_CAP = 60.0
"""Largest cap of logits whose exponentials have a finite sum in float32, over 10^10 words."""


@lru_cache
def _soft_cap(c: float) -> Callable[[array], array]:
    """Return the operator with its gradient by its result: MLX's own computes a cosh."""
    cap = mx.custom_function(lambda x: c * mx.tanh(x / c))
    cap.vjp(lambda _, dy, y: dy * (1 - mx.square(y / c)))
    return cast(Callable[[array], array], cap)


OPS = Ops(MLXPlainForm())
