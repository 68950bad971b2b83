"""The Canon layer: a position adds the positions just before it, each channel with its own taps.

    y = conv_k( u )                              depthwise, causal, k taps, no bias, no activation

The residual of Canon, u + conv_k( u ), is that of every layer of a sequence, so a Canon layer fits
before any other: "canon mlstm canon swiglu" has those of the paper before mixer and channel map (A
and C). There the sum is the input of the next layer only; here it stays in the residual stream.

Source: Allen-Zhu 2025, Physics of Language Models 4.1, arXiv:2512.17351.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *


@dataclass(frozen=True, kw_only=True)
class Canon(Layer):
    """Numbers of the layer: `kernel` is k, the taps of the convolution."""

    name = "canon"
    about = "a short convolution before any other layer"

    kernel: int = 4

    def check(self, d: int) -> None:
        check_positive(kernel=self.kernel)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield taps("conv.weight", d, self.kernel)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return {"conv": [(self.kernel - 1, d)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        before = state and state[0]
        y, last = run.ops.causal_conv(x, p["conv.weight"], None, state=before, silu=False)
        return y, (last,)
