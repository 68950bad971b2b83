"""State-space duality, as in Mamba-2: one speed of forgetting for a whole head.

    z, (x, B, C), dt = W_in u                    inner = expand d;  N, N;  heads
    x, B, C = SiLU(conv_k(x, B, C))              depthwise, causal; x cut into its heads
    dt = softplus(dt + bias),  a = -exp(A_log) dt
    S_t = exp(a_t) S_{t-1} + dt_t B_t x_t^T      (N, inner / heads), B and C common to all heads
    h_t = S_t^T C_t + D x_t
    y = W_out RMSNorm( h * SiLU(z) )

The state of all heads has inner N numbers. Softplus of the bias begins log-uniform in 0.001 to 0.1,
exp(A_log) uniform in 1 to 16.

Source: Dao and Gu 2024, Transformers are SSMs, arXiv:2405.21060.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.checks import check_heads
from mlxhog.models.mad.layers.linear_spec import bias, linear, taps
from mlxhog.models.spec import ParamSpec

CHUNK_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class SSD:
    """Numbers of the layer.

    Attributes:
        heads: parts of the inner width that forget together.
        expand: inner width in widths of the model.
        states: N, numbers kept by each inner channel.
        conv: taps of the convolution.
    """

    name: ClassVar[str] = "ssd"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    expand: int = 2
    states: int = 16
    conv: int = 4

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        for name in ("expand", "states", "conv"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; set it to at least 1")
        check_heads(self.heads, self.expand * d, "inner width")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; linear maps begin as torch.nn.Linear's do."""
        inner = self.expand * d
        mixed = inner + 2 * self.states
        yield linear("z_proj.weight", inner, d)
        yield linear("xbc_proj.weight", mixed, d)
        yield linear("dt_proj.weight", self.heads, d, product=False)
        yield ParamSpec("dt_bias", (self.heads,), "inverse_softplus:0.001:0.1")
        yield taps("conv.weight", mixed, self.conv)
        yield bias("conv.bias", mixed, self.conv)
        yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        yield ParamSpec("D", (self.heads,), "ones")
        yield ParamSpec("out_norm.weight", (inner,), "ones")
        yield linear("out_proj.weight", d, inner)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: S of every head, and the last inputs of the convolution."""
        inner = self.expand * d
        mixed = inner + 2 * self.states
        return {"cell": inner * self.states, "conv": mixed * (self.conv - 1)}
