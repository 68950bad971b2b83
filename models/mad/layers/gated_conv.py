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

import numpy as np

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Array, Arrays, Float, Params, ParamSpec, Pass, Sizes, State


@dataclass(frozen=True, kw_only=True)
class GatedConv:
    """Numbers of the layer: `kernel` is k, the taps of the convolution."""

    name: ClassVar[str] = "gated-conv"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    kernel: int = 3

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        if self.kernel < 1:
            raise ConfigError(f"kernel is {self.kernel}; a convolution has at least 1 tap")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        linear, taps = f"uniform:{1 / math.sqrt(d)!r}", f"uniform:{1 / math.sqrt(self.kernel)!r}"
        yield ParamSpec("in_proj.weight", (3 * d, d), linear, decay=True, product=True)
        yield ParamSpec("conv.weight", (d, 1, self.kernel), taps, decay=True)
        yield ParamSpec("out_proj.weight", (d, d), linear, decay=True, product=True)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return the sizes of the last k - 1 inputs of the convolution."""
        return {"conv": d * (self.kernel - 1)}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return zeros: the convolution's last inputs, (B, k - 1, d) float32."""
        return (xp.zeros((B, self.kernel - 1, d)),)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
        d, w = x.shape[-1], p["in_proj.weight"]
        b, c, v = ops.linears(x, [w[:d], w[d : 2 * d], w[2 * d :]])
        taps = p["conv.weight"]
        y, last = ops.causal_conv(
            b * v, taps, xp.zeros_like(taps[:, 0, 0]), state=state and state[0], silu=False
        )
        (y,) = ops.linears(c * y, [p["out_proj.weight"]])
        return y, (last,)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        b, c, v = np.split(x @ p["in_proj.weight"].T, 3, axis=-1)
        u, taps, k = b * v, p["conv.weight"][:, 0], self.kernel
        y = np.zeros_like(u)
        for t in range(x.shape[1]):
            for j in range(min(k, t + 1)):
                y[:, t] += taps[:, k - 1 - j] * u[:, t - j]
        return (c * y) @ p["out_proj.weight"].T
