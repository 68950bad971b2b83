"""A layer of your own: a gated moving average that chooses how fast it forgets; docs/extending.md.

    v, g, z = W_v u, W_g u, W_z u + b            each (B, S, inner), inner = expand d
    dt = softplus(z)                             softplus(b) begins log-uniform in 0.01 to 1
    h_t = exp(-dt_t) h_{t-1} + dt_t v_t          for small dt the exponential moving average
    y = W_out( SiLU(g) * h )

mlxhog mad train --plugin examples/my_layer.py --layers "my_layer swiglu" --task CR
"""

from collections.abc import Iterable

from mlxhog.models.layers.layer import ForwardContext, Layer, Params, Shapes, State, linear_params
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec


class MovingAverage(Layer):
    """A gated moving average that chooses how fast it forgets."""

    name = "my_layer"

    expand: int = 1  # inner width in widths of the model

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner = self.expand * d
        yield from linear_params(d, v_proj=inner, g_proj=inner)
        yield from linear_params(d, z_proj=inner, autocast=False)
        yield ParamSpec("z_proj.bias", (inner,), "inverse_softplus:0.01:1.0")
        yield from linear_params(inner, out_proj=d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        return {"cell": [(self.expand * d, 1)]}

    def forward(
        self, p: Params, x: Array, state: State, ctx: ForwardContext
    ) -> tuple[Array, State]:
        ops, xp = ctx.ops, ctx.ops.xp
        v, g, z = ctx.linears(x, p, "v_proj", "g_proj", "z_proj")
        dt = ops.activate(xp.float32(z), "softplus")
        one = xp.ones_like(dt[..., :1])
        A = -xp.ones_like(p["z_proj.bias"])[:, None]
        h, last = ops.selective_scan(v, dt, A, one, one, state=state[0])
        return ctx.linear(ops.swiglu(g, h), p, "out_proj"), (last,)
