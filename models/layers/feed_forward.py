"""The feed-forward layers: an MLP, gated ones, and a mixture of experts.

At d = 128 the inner widths of the first three are 512, 352 and 192.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.models.layers.layer import ForwardContext, Layer, Output, Params, State, linear_params
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec, bound, small


class MLP(Layer):
    """Two linear layers with GELU between them.

        y = W2 GELU(W1 x + b1) + b2                  GELU by tanh; inner width 4 d

    Source: Vaswani et al. 2017, arXiv:1706.03762; the width and the activation as in mad-lab.
    """

    name = "mlp"
    kind = "channel"
    keeps_bf16 = True
    output_projection = "w2"

    inner: int | None = None  # inner width; None: as above

    def width(self, d: int) -> int:
        """Return the inner width at width d."""
        return 4 * d if self.inner is None else self.inner

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, bias=True, w1=self.width(d))
        yield from linear_params(self.width(d), bias=True, w2=d)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        u = ctx.ops.activate(ctx.linear(x, p, "w1"), "gelu_tanh")
        return ctx.linear(u, p, "w2"), ()


class SwiGLU(MLP):
    """A gated feed-forward layer with SiLU.

        y = W3( SiLU(W1 x) * W2 x )                  8 d / 3, rounded up to a multiple of 16

    Source: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202; as in mad-lab.
    """

    name = "swiglu"
    output_projection = "w3"

    def width(self, d: int) -> int:
        return 16 * math.ceil(8 * d // 3 / 16) if self.inner is None else self.inner

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, w1=self.width(d), w2=self.width(d))
        yield from linear_params(self.width(d), w3=d)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        return ctx.linear(ctx.ops.swiglu(*ctx.linears(x, p, "w1", "w2")), p, "w3"), ()


class GEGLU(SwiGLU):
    """A gated feed-forward layer with GELU.

        y = W3( GELU(W1 x) * W2 x )                  1.3 d, rounded up to a multiple of 64

    It is the one of xLSTM's sLSTM blocks. Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
    """

    name = "geglu"

    def width(self, d: int) -> int:
        return 64 * math.ceil(1.3 * d / 64) if self.inner is None else self.inner

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        gate, up = ctx.linears(x, p, "w1", "w2")
        return ctx.linear(ctx.ops.glu(gate, up, "gelu"), p, "w3"), ()


class LargeFeedForward(Layer):
    """Feed-forward layer of xLSTM Large: y = Wdown( silu(Wgate u) * (Wup u) ), of width `inner`."""

    name = "swiglu-large"
    kind = "channel"
    keeps_bf16 = True
    output_projection = "proj_down"

    inner: int
    bias: bool
    residual: str  # initializer of Wdown

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner, init = self.inner, small(d)
        yield from linear_params(d, init=init, bias=self.bias, proj_up_gate=inner, proj_up=inner)
        yield from linear_params(self.inner, init=self.residual, bias=self.bias, proj_down=d)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        y = ctx.ops.swiglu(*ctx.linears(x, p, "proj_up_gate", "proj_up"))
        return ctx.linear(y, p, "proj_down"), ()


class FeedForwardV1(Layer):
    """Gated feed-forward layer of the first paper: [g; p] = Wup u, y = Wdown( act(g) * p )."""

    name = "ffn-v1"
    kind = "channel"
    keeps_bf16 = True
    output_projection = "proj_down"

    inner: int
    act_fn: str
    bias: bool
    residual: str

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, init=small(d), bias=self.bias, proj_up=2 * self.inner)
        yield from linear_params(self.inner, init=self.residual, bias=self.bias, proj_down=d)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        gate, up = ctx.halves(x, p, "proj_up")
        y = ctx.ops.glu(gate, up, self.act_fn)
        return ctx.drop(ctx.linear(y, p, "proj_down")), ()


class MoESwiGLU(Layer):
    """A mixture of SwiGLU experts, of which every position uses the best few.

        s = R u + r                                  (B, S, E), one score per expert
        p = softmax of the `active` largest s, 0 elsewhere
        y = sum over e of p_e W3_e( SiLU(W1_e u) * W2_e u )

    All experts are computed, and inactive ones have weight 0. The router "mad" is mad-lab's: the
    scores of inactive experts are 0 before the softmax, so they keep a weight, and every expert's
    output depends on all inner units, z = W3 [..], row e + E i of which is unit i of expert e.

    Sources: Shazeer et al. 2017, arXiv:1701.06538 (softmax over the best k); mad-lab.
    """

    name = "moe-swiglu"
    kind = "channel"

    experts: int = 8
    active: int = 2  # experts per position
    inner: int = 16  # each expert's width
    router: str = option("top-k", "or mad", choices=("top-k", "mad"))

    def check(self, d: int) -> None:
        super().check(d)
        if self.active > self.experts:
            raise ConfigError(
                f"active is {self.active} of {self.experts} experts; take 1 to {self.experts}"
            )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        E, U = self.experts, self.experts * self.inner
        yield from linear_params(d, autocast=False, bias=True, router=E)
        yield from linear_params(d, w1=U, w2=U)
        if self.router == "mad":
            yield from linear_params(U, w3=E * d)
        else:  # the inputs of an expert's outputs are its own inner units
            yield from (replace(one, init=bound(self.inner)) for one in linear_params(U, w3=d))

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        xp, E = ctx.ops.xp, self.experts
        scores = ctx.linear(x, p, "router")
        h = ctx.ops.swiglu(*ctx.linears(x, p, "w1", "w2"))
        is_active = scores >= xp.sort(xp.stop_gradient(scores), -1)[..., E - self.active, None]
        if self.router == "top-k":
            share = xp.softmax(xp.where(is_active, scores, -math.inf), -1)
            weighted = h.reshape(*h.shape[:-1], E, self.inner) * share[..., None]
            return ctx.linear(weighted.flatten(-2), p, "w3"), ()
        share = xp.softmax(xp.where(is_active, scores, 0.0), -1)
        z = ctx.linear(h, p, "w3")
        return (z.reshape(*x.shape, E) * share[..., None, :]).sum(-1), ()
