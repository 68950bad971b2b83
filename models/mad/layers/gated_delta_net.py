"""Gated DeltaNet: a memory that replaces the value of a key, and decays as a whole.

    q, k, v = SiLU(conv_k(W u))                  depthwise, causal; heads of dh = d / heads
    q, k = q / |q| / sqrt(dh), k / |k|           of every head
    beta = sigmoid(W_b u)                        (B, S, heads)
    a = -exp(A_log) softplus(W_a u + bias)       (B, S, heads), or 0 with decay = false
    S_t = exp(a_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
    h_t = S_t^T q_t
    y = W_out( SiLU(W_g u) * RMSNorm_head(h) )

Without decay it is DeltaNet, but for its gate. Softplus of the bias begins log-uniform in 0.001 to
0.1, exp(A_log) uniform in 1 to 16.

Sources: Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464; Yang et al. 2024, DeltaNet,
arXiv:2406.06484.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import (
    Array,
    FixedState,
    Float,
    Params,
    ParamSpec,
    Pass,
    Sizes,
    State,
    check_heads,
    linear,
    taps,
)
from mlxhog.models.ops.kernels import Ops
from mlxhog.models.ops.reference.layers_numpy import causal_conv, rms_norm, sigmoid, silu, softplus
from mlxhog.models.ops.reference.recurrences_numpy import delta_cell

CHUNK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(FixedState):
    """Numbers of the layer: heads, taps of the convolution, and whether the memory decays."""

    name: ClassVar[str] = "gated-delta-net"
    about: ClassVar[str] = "a memory that replaces the value of a key, and decays as a whole"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 4
    decay: bool = True

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        check_taps(self.conv)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        yield linear("qkv_proj.weight", 3 * d, d)
        yield taps("conv.weight", 3 * d, self.conv)
        yield linear("b_proj.weight", self.heads, d, product=False)
        if self.decay:
            yield linear("a_proj.weight", self.heads, d, product=False)
            yield ParamSpec("dt_bias", (self.heads,), "inverse_softplus:0.001:0.1")
            yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        yield linear("g_proj.weight", d, d)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)

    def state_shapes(self, d: int) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """Return the shapes of S of every head, and of the convolution's last inputs."""
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)], "conv": [(self.conv - 1, 3 * d)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        dh = d // self.heads
        cell, conv = (None, None) if state is None else state
        names = ("qkv_proj", "g_proj", "b_proj", *(("a_proj",) if self.decay else ()))
        qkv, g, b, *a = ops.linears(x, [p[f"{name}.weight"] for name in names])
        taps = p["conv.weight"]
        qkv, conv = ops.causal_conv(qkv, taps, xp.zeros_like(taps[:, 0, 0]), state=conv, silu=True)
        q, k, v = (qkv[..., i * d : (i + 1) * d].reshape(B, S, self.heads, dh) for i in range(3))
        q, k = unit(ops, q, cfg.norm_eps, dh**-0.5), unit(ops, k, cfg.norm_eps)
        beta = write_strength(ops, b)
        log_decay = log_decay_of_heads(ops, p, a[0]) if self.decay else xp.zeros_like(beta)
        h, cell = ops.delta_cell(q, k, v, log_decay, beta, chunk_size=CHUNK_SIZE, state=cell)
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(ops.swiglu(g, h.reshape(B, S, d)), [p["out_proj.weight"]])
        return y, (cell, conv)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        B, S, d = x.shape
        dh = d // self.heads
        qkv, _, _ = causal_conv(
            x @ p["qkv_proj.weight"].T, p["conv.weight"], np.zeros(3 * d), silu=True
        )
        q, k, v = (y.reshape(B, S, self.heads, dh) for y in np.split(qkv, 3, axis=-1))
        q, k = unit_float64(q, cfg.norm_eps) / np.sqrt(dh), unit_float64(k, cfg.norm_eps)
        beta = sigmoid(x @ p["b_proj.weight"].T)
        log_decay = np.zeros(beta.shape)
        if self.decay:
            log_decay = -np.exp(p["A_log"]) * softplus(x @ p["a_proj.weight"].T + p["dt_bias"])
        h, _ = delta_cell(q, k, v, log_decay, beta)
        h = rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(B, S, d)
        return (silu(x @ p["g_proj.weight"].T) * h) @ p["out_proj.weight"].T


# -- shared with the other layers of the delta rule ------------------------------------------------


def check_taps(conv: int) -> None:
    """Refuse a convolution without taps."""
    if conv < 1:
        raise ConfigError(f"conv is {conv}; a convolution has at least 1 tap")


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


def log_decay_of_heads(ops: Ops, p: Params, a: Array) -> Array:
    """Return -exp(A_log) softplus(a + dt_bias) of a (B, S, heads)."""
    dt = ops.activate(ops.xp.float32(a) + p["dt_bias"], "softplus")
    return -ops.xp.exp(p["A_log"]) * dt
