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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

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
from mlxhog.models.mad.layers.gated_delta_net import (
    CHUNK_SIZE,
    check_taps,
    unit,
    unit_float64,
    write_strength,
)
from mlxhog.models.ops.reference.layers_numpy import causal_conv, rms_norm, sigmoid
from mlxhog.models.ops.reference.recurrences_numpy import delta_cell


@dataclass(frozen=True, kw_only=True)
class DeltaNet(FixedState):
    """Numbers of the layer: heads, taps of the convolution, and whether beta reaches 2."""

    name: ClassVar[str] = "delta-net"
    about: ClassVar[str] = "a memory that replaces the value of a key"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 4
    negative: bool = False

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        check_taps(self.conv)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        yield linear("qkv_proj.weight", 3 * d, d)
        yield taps("conv.weight", 3 * d, self.conv)
        yield linear("b_proj.weight", self.heads, d, product=False)
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
        qkv, b = ops.linears(x, [p["qkv_proj.weight"], p["b_proj.weight"]])
        taps = p["conv.weight"]
        qkv, conv = ops.causal_conv(qkv, taps, xp.zeros_like(taps[:, 0, 0]), state=conv, silu=True)
        q, k, v = (y.reshape(B, S, self.heads, dh) for y in xp.split(qkv, 3, -1))
        q, k = unit(ops, q, cfg.norm_eps, dh**-0.5), unit(ops, k, cfg.norm_eps)
        beta = write_strength(ops, b, self.negative)
        h, cell = ops.delta_cell(
            q, k, v, xp.zeros_like(beta), beta, chunk_size=CHUNK_SIZE, state=cell
        )
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(h.reshape(B, S, d), [p["out_proj.weight"]])
        return y, (cell, conv)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        B, S, d = x.shape
        dh = d // self.heads
        u, _, _ = causal_conv(
            x @ p["qkv_proj.weight"].T, p["conv.weight"], np.zeros(3 * d), silu=True
        )
        q, k, v = (y.reshape(B, S, self.heads, dh) for y in np.split(u, 3, axis=-1))
        q, k = unit_float64(q, cfg.norm_eps) / np.sqrt(dh), unit_float64(k, cfg.norm_eps)
        beta = (1 + self.negative) * sigmoid(x @ p["b_proj.weight"].T)
        h, _ = delta_cell(q, k, v, np.zeros(beta.shape), beta)
        return rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(B, S, d) @ (
            p["out_proj.weight"].T
        )
