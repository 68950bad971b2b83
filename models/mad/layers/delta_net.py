"""DeltaNet: a memory that replaces the value of a key and forgets nothing else.

    q, k, v = SiLU(conv_k(W u))                  depthwise, causal; heads of dh = d / heads
    q, k = q / |q| / sqrt(dh), k / |k|           of every head
    beta = sigmoid(W_b u)                        (B, S, heads), or twice that with negative = true
    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
    h_t = S_t^T q_t
    y = W_out RMSNorm_head(h)

The transition of S has the eigenvalue 1 - beta in the direction of k. A beta above 1 makes it
negative, which a linear recurrence needs to count modulo 2 at any length.
`gated-delta-net(decay=false)` is this layer with a gate at its output.

Sources: Yang et al. 2024, DeltaNet, arXiv:2406.06484; Grazzi et al. 2024, Unlocking State-Tracking
in Linear RNNs Through Negative Eigenvalues, arXiv:2411.12537.
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
from mlxhog.models.mad.layers.delta_rule import CHUNK_SIZE, DeltaRule, write_strength
from mlxhog.models.ops.reference.layers_numpy import rms_norm, sigmoid
from mlxhog.models.ops.reference.recurrences_numpy import delta_cell


@dataclass(frozen=True, kw_only=True)
class DeltaNet(DeltaRule):
    """Numbers of the layer: those of the delta rule, and whether beta reaches 2."""

    name: ClassVar[str] = "delta-net"
    about: ClassVar[str] = "a memory that replaces the value of a key"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    negative: bool = False

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        yield linear("qkv_proj.weight", 3 * d, d)
        yield taps("conv.weight", 3 * d, self.conv)
        yield linear("b_proj.weight", self.heads, d, product=False)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops = run.ops
        cell, conv = (None, None) if state is None else state
        u, b = ops.linears(x, [p["qkv_proj.weight"], p["b_proj.weight"]])
        q, k, v, conv = self.query_key_value(ops, p["conv.weight"], u, conv, cfg.norm_eps)
        beta = write_strength(ops, b, self.negative)
        no_decay = ops.xp.zeros_like(beta)
        h, cell = ops.delta_cell(q, k, v, no_decay, beta, chunk_size=CHUNK_SIZE, state=cell)
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(h.reshape(x.shape), [p["out_proj.weight"]])
        return y, (cell, conv)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        q, k, v = self.query_key_value_float64(p, x, cfg.norm_eps)
        beta = (1 + self.negative) * sigmoid(x @ p["b_proj.weight"].T)
        h, _ = delta_cell(q, k, v, np.zeros(beta.shape), beta)
        h = rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(x.shape)
        return h @ p["out_proj.weight"].T
