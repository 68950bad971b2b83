"""The short convolution between two gates, the operator of LFM2.

    b, c, v = W_in u                             each (B, S, d)
    y = W_out( c * conv_k( b * v ) )             depthwise, causal, k taps, no bias, no activation

Source: Hugging Face transformers, `lfm2`.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *


@dataclass(frozen=True, kw_only=True)
class GatedConv(Layer):
    """Numbers of the layer: `kernel` is k, the taps of the convolution."""

    name = "gated-conv"
    about = "a short convolution between two gates, as in LFM2"

    kernel: int = 3

    def check(self, d: int) -> None:
        check_positive(kernel=self.kernel)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield linear("in_proj.weight", 3 * d, d)
        yield taps("conv.weight", d, self.kernel)
        yield linear("out_proj.weight", d, d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return {"conv": [(self.kernel - 1, d)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, d, w = run.ops, x.shape[-1], p["in_proj.weight"]
        b, c, v = ops.linears(x, [w[:d], w[d : 2 * d], w[2 * d :]])
        before = state and state[0]
        y, last = ops.causal_conv(b * v, p["conv.weight"], None, state=before, silu=False)
        return run.linear(c * y, p, "out_proj"), (last,)
