"""What the layers of the delta rule share: heads, a short convolution, keys of length 1, and rates.

    q, k, v = SiLU(conv_k(W u))                  depthwise, causal; heads of dh = d / heads
    q, k = q / |q| / sqrt(dh), k / |k|           of every head
    beta = sigmoid(W_b u)                        (B, S, heads), or twice that with negative = true
    a = -exp(A_log) softplus(W_a u + bias)       (B, S, heads), the log of the decay of a head

Softplus of the bias begins log-uniform in 0.001 to 0.1, exp(A_log) uniform in 1 to 16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlxhog.models.mad.layer import (
    Array,
    FixedState,
    Float,
    Params,
    ParamSpec,
    check_heads,
    check_positive,
    linear,
)
from mlxhog.models.ops.operators import Ops
from mlxhog.models.ops.reference.layers_numpy import causal_conv, softplus

CHUNK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class DeltaRule(FixedState):
    """Numbers of every layer of the delta rule: heads, and taps of the convolution."""

    heads: int = 4
    conv: int = 4

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        check_positive(conv=self.conv)

    @property
    def keys(self) -> int:
        """n, keys and values of a token."""
        return 1

    def channels(self, d: int) -> int:
        """Channels of the convolution: a query, n keys and n values."""
        return (1 + 2 * self.keys) * d

    def state_shapes(self, d: int) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """Return the shapes of S of every head, and of the convolution's last inputs."""
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)], "conv": [(self.conv - 1, self.channels(d))]}

    def query_key_value(
        self, ops: Ops, taps: Array, u: Array, conv: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """Return q (B, S, heads, dh), k and v (B, S n, heads, dh), and the convolution's state.

        Args:
            ops: the operators.
            taps: of the convolution.
            u: (B, S, channels), before the convolution.
            conv: the convolution's state before the first position; None is zeros.
            eps: added to the squared length of a query and of a key.
        """
        u, conv = ops.causal_conv(u, taps, None, state=conv, silu=True)
        B, _, channels = u.shape
        d = channels // (1 + 2 * self.keys)
        parts = ops.xp.split(u, [d, d + self.keys * d], -1)
        q, k, v = (y.reshape(B, -1, self.heads, d // self.heads) for y in parts)
        return unit(ops, q, eps, q.shape[-1] ** -0.5), unit(ops, k, eps), v, conv

    def query_key_value_float64(
        self, p: Mapping[str, Float], x: Float, eps: float
    ) -> tuple[Float, Float, Float]:
        """Return q, k and v of whole sequences x (B, S, d), shapes as of `query_key_value`."""
        B, _, d = x.shape
        u, w = x @ p["qkv_proj.weight"].T, p["conv.weight"]
        u, _, _ = causal_conv(u, w, np.zeros(len(w)), silu=True)
        parts = np.split(u, [d, d + self.keys * d], axis=-1)
        q, k, v = (y.reshape(B, -1, self.heads, d // self.heads) for y in parts)
        return unit_float64(q, eps) / np.sqrt(q.shape[-1]), unit_float64(k, eps), v


def unit(ops: Ops, x: Array, eps: float, length: float = 1.0) -> Array:
    """Return heads x (..., dh) scaled to a length, length * x / sqrt(|x|^2 + eps)."""
    dh = x.shape[-1]
    return ops.rms_norm(x, ops.xp.full((dh,), length * dh**-0.5, like=x), eps / dh)


def unit_float64(x: Float, eps: float) -> Float:
    """Return x / sqrt(|x|^2 + eps) of heads x (..., dh)."""
    y: Float = x / np.sqrt((x * x).sum(-1, keepdims=True) + eps)
    return y


def write_strength(ops: Ops, b: Array, negative: bool = False) -> Array:
    """Return beta of its pre-activation: 0 to 1, or 0 to 2 where eigenvalues may be negative."""
    beta = ops.activate(ops.xp.float32(b), "sigmoid")
    return 2.0 * beta if negative else beta


def decay_spec(heads: int, d: int) -> Iterable[ParamSpec]:
    """Declare the parameters of `log_decay`."""
    yield linear("a_proj.weight", heads, d, product=False)
    yield ParamSpec("dt_bias", (heads,), "inverse_softplus:0.001:0.1")
    yield ParamSpec("A_log", (heads,), "log_of_uniform:1:16")


def log_decay(ops: Ops, p: Params, a: Array) -> Array:
    """Return -exp(A_log) softplus(a + dt_bias) of a (B, S, heads)."""
    dt = ops.activate(ops.xp.float32(a) + p["dt_bias"], "softplus")
    return -ops.xp.exp(p["A_log"]) * dt


def log_decay_float64(p: Mapping[str, Float], x: Float) -> Float:
    """Return the log of the decay of whole sequences x (B, S, d)."""
    y: Float = -np.exp(p["A_log"]) * softplus(x @ p["a_proj.weight"].T + p["dt_bias"])
    return y
