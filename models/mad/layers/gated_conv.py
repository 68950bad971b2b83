"""The short convolution between two gates, the operator of LFM2.

    b, c, v = W_in u                             each (B, S, d)
    y = W_out( c * conv_k( b * v ) )             depthwise, causal, k taps, no bias, no activation

Source: Hugging Face transformers, `lfm2`.
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
    check_positive,
    linear,
    taps,
)


@dataclass(frozen=True, kw_only=True)
class GatedConv(FixedState):
    """Numbers of the layer: `kernel` is k, the taps of the convolution."""

    name: ClassVar[str] = "gated-conv"
    about: ClassVar[str] = "a short convolution between two gates, as in LFM2"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    kernel: int = 3

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_positive(kernel=self.kernel)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        yield linear("in_proj.weight", 3 * d, d)
        yield taps("conv.weight", d, self.kernel)
        yield linear("out_proj.weight", d, d)

    def state_shapes(self, d: int) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """Return the shape of the last k - 1 inputs of the convolution."""
        return {"conv": [(self.kernel - 1, d)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, d, w = run.ops, x.shape[-1], p["in_proj.weight"]
        b, c, v = ops.linears(x, [w[:d], w[d : 2 * d], w[2 * d :]])
        before = state and state[0]
        y, last = ops.causal_conv(b * v, p["conv.weight"], None, state=before, silu=False)
        (y,) = ops.linears(c * y, [p["out_proj.weight"]])
        return y, (last,)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        b, c, v = np.split(x @ p["in_proj.weight"].T, 3, axis=-1)
        u, conv, k = b * v, p["conv.weight"][:, 0], self.kernel
        y = np.zeros_like(u)
        for t in range(x.shape[1]):
            for j in range(min(k, t + 1)):
                y[:, t] += conv[:, k - 1 - j] * u[:, t - j]
        return (c * y) @ p["out_proj.weight"].T
