"""Gated DeltaNet: a memory that replaces what it held for a key, and forgets as a whole.

    q, k, v = SiLU(conv_k(W u))                  depthwise, causal; heads of dh = d / heads
    q, k = q / |q| / sqrt(dh), k / |k|           of every head, by RMSNorm
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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.checks import check_heads
from mlxhog.models.mad.layers.linear_spec import linear, taps
from mlxhog.models.spec import ParamSpec

CHUNK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet:
    """Numbers of the layer: heads, taps of the convolution, and whether the memory decays."""

    name: ClassVar[str] = "gated-delta-net"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 4
    decay: bool = True

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        check_heads(self.heads, d)
        if self.conv < 1:
            raise ConfigError(f"conv is {self.conv}; a convolution has at least 1 tap")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; linear maps begin as torch.nn.Linear's do."""
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

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: S of every head, and the last inputs of the convolution."""
        return {"cell": d * (d // self.heads), "conv": 3 * d * (self.conv - 1)}
