"""Gated DeltaNet: a memory that replaces the value of a key, and decays as a whole.

    q, k, v = SiLU(conv_k(W u))                  depthwise, causal; heads of dh = d / heads
    q, k = q / |q| / sqrt(dh), k / |k|           of every head
    beta = sigmoid(W_b u)                        (B, S, heads)
    a = -exp(A_log) softplus(W_a u + bias)       (B, S, heads), or 0 with decay = false
    S_t = exp(a_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
    h_t = S_t^T q_t
    y = W_out( SiLU(W_g u) * RMSNorm_head(h) )

Without decay it is DeltaNet, but for its gate.

Sources: Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464; Yang et al. 2024, DeltaNet,
arXiv:2406.06484.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mlxhog.models.mad.layer import (
    Array,
    Float,
    Params,
    ParamSpec,
    Pass,
    Sizes,
    State,
    linear,
    taps,
)
from mlxhog.models.mad.layers.delta_rule import (
    CHUNK_SIZE,
    DeltaRule,
    decay_spec,
    log_decay,
    log_decay_float64,
    write_strength,
)
from mlxhog.models.ops.reference.layers_numpy import rms_norm, sigmoid, silu
from mlxhog.models.ops.reference.recurrences_numpy import delta_cell


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(DeltaRule):
    """Numbers of the layer: those of the delta rule, and whether the memory decays."""

    name: ClassVar[str] = "gated-delta-net"
    about: ClassVar[str] = "a memory that replaces the value of a key, and decays as a whole"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    decay: bool = True

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        yield linear("qkv_proj.weight", 3 * d, d)
        yield taps("conv.weight", 3 * d, self.conv)
        yield linear("b_proj.weight", self.heads, d, product=False)
        if self.decay:
            yield from decay_spec(self.heads, d)
        yield linear("g_proj.weight", d, d)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops = run.ops
        cell, conv = (None, None) if state is None else state
        names = ("qkv_proj", "g_proj", "b_proj", *(("a_proj",) if self.decay else ()))
        u, g, b, *a = ops.linears(x, [p[f"{name}.weight"] for name in names])
        q, k, v, conv = self.query_key_value(ops, p["conv.weight"], u, conv, cfg.norm_eps)
        beta = write_strength(ops, b)
        decay = log_decay(ops, p, a[0]) if self.decay else ops.xp.zeros_like(beta)
        h, cell = ops.delta_cell(q, k, v, decay, beta, chunk_size=CHUNK_SIZE, state=cell)
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(ops.swiglu(g, h.reshape(x.shape)), [p["out_proj.weight"]])
        return y, (cell, conv)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        q, k, v = self.query_key_value_float64(p, x, cfg.norm_eps)
        beta = sigmoid(x @ p["b_proj.weight"].T)
        decay = log_decay_float64(p, x) if self.decay else np.zeros(beta.shape)
        h, _ = delta_cell(q, k, v, decay, beta)
        h = rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(x.shape)
        return (silu(x @ p["g_proj.weight"].T) * h) @ p["out_proj.weight"].T
