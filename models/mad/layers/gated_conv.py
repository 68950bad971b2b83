"""The short convolution between two gates, the operator of LFM2.

    b, c, v = W_in u                             each (B, S, d)
    y = W_out( c * conv_k( b * v ) )             depthwise, causal, k taps, no bias, no activation

Source: Hugging Face transformers, `lfm2`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.spec import ParamSpec


@dataclass(frozen=True, kw_only=True)
class GatedConv:
    """Numbers of the layer: `kernel` is k, the taps of the convolution."""

    name: ClassVar[str] = "gated-conv"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    kernel: int = 3

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        if self.kernel < 1:
            raise ConfigError(f"kernel is {self.kernel}; a convolution has at least 1 tap")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; linear maps begin as torch.nn.Linear's do."""
        linear, taps = f"uniform:{1 / math.sqrt(d)!r}", f"uniform:{1 / math.sqrt(self.kernel)!r}"
        yield ParamSpec("in_proj.weight", (3 * d, d), linear, decay=True, product=True)
        yield ParamSpec("conv.weight", (d, 1, self.kernel), taps, decay=True)
        yield ParamSpec("out_proj.weight", (d, d), linear, decay=True, product=True)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: the last k - 1 inputs of the convolution."""
        return {"conv": d * (self.kernel - 1)}
