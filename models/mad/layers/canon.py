"""The Canon layer: a position adds the positions just before it, each channel with its own taps.

    y = conv_k( u )                              depthwise, causal, k taps, no bias, no activation

The residual of Canon, u + conv_k( u ), is that of every layer of a sequence, so a Canon layer fits
before any other: "canon mlstm canon swiglu" has those of the paper before mixer and channel map (A
and C). There the sum is the input of the next layer only; here it stays in the residual stream.

Source: Allen-Zhu 2025, Physics of Language Models 4.1, arXiv:2512.17351.
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
    taps,
)


@dataclass(frozen=True, kw_only=True)
class Canon(FixedState):
    """Numbers of the layer: `kernel` is k, the taps of the convolution."""

    name: ClassVar[str] = "canon"
    about: ClassVar[str] = "a short convolution before any other layer"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    kernel: int = 4

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_positive(kernel=self.kernel)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; taps begin as torch's do."""
        yield taps("conv.weight", d, self.kernel)

    def state_shapes(self, d: int) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """Return the shape of the last k - 1 inputs."""
        return {"conv": [(self.kernel - 1, d)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        before = state and state[0]
        y, last = run.ops.causal_conv(x, p["conv.weight"], None, state=before, silu=False)
        return y, (last,)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, tap by tap."""
        y = np.zeros_like(x)
        for tap, weight in enumerate(p["conv.weight"][:, 0].T):
            back = self.kernel - 1 - tap
            y[:, back:] += weight * x[:, : x.shape[1] - back]
        return y
