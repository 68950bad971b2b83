"""A layer of your own in one file: a gated moving average that chooses how fast it forgets.

    v, g, z = W_v u, W_g u, W_z u + b            each (B, S, inner), inner = expand d
    dt = softplus(z)                             softplus(b) begins log-uniform in 0.01 to 1
    h_t = exp(-dt_t) h_{t-1} + dt_t v_t          for small dt the exponential moving average
    y = W_out( SiLU(g) * h )

    mlxhog mad train --plugin examples/my_layer.py --layers "my_layer swiglu" --task CR
    mlxhog parity "my_layer(expand=2) swiglu" --plugin examples/my_layer.py

The class declares its parameters and its state once, and is trained with PyTorch and MLX, since it
computes with the operators `run.ops` and the array functions `run.ops.xp` alone. `reference` says
the same in NumPy, position by position, and `mlxhog parity` compares all of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import (
    Array,
    Arrays,
    Float,
    Params,
    ParamSpec,
    Pass,
    Sizes,
    State,
    linear,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """Numbers of the layer: `expand` is the inner width in widths of the model."""

    name: ClassVar[str] = "my_layer"
    about: ClassVar[str] = "a gated moving average that chooses how fast it forgets"
    kind: ClassVar[str] = "mixer"  # "channel" where positions do not meet

    expand: int = 1

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        if self.expand < 1:
            raise ConfigError(f"expand is {self.expand}; set it to at least 1")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        inner = self.expand * d
        yield linear("v_proj.weight", inner, d)
        yield linear("g_proj.weight", inner, d)
        yield linear("z_proj.weight", inner, d, product=False)
        yield ParamSpec("z_proj.bias", (inner,), "inverse_softplus:0.01:1.0")
        yield linear("out_proj.weight", d, inner)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return how many numbers are kept per sequence: h."""
        return {"cell": self.expand * d}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return h before the first position: zeros."""
        return (xp.zeros((B, self.expand * d, 1)),)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
        weights = [p[f"{name}_proj.weight"] for name in "vgz"]
        v, g, z = ops.linears(x, weights, [None, None, p["z_proj.bias"]])
        dt = ops.activate(xp.float32(z), "softplus")
        one = xp.ones_like(dt[..., :1])
        A = -xp.ones_like(p["z_proj.bias"])[:, None]
        h, last = ops.selective_scan(v, dt, A, one, one, state=state and state[0])
        (y,) = ops.linears(ops.swiglu(g, h), [p["out_proj.weight"]])
        return y, (last,)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64 NumPy, position by position."""
        v, g, z = (x @ p[f"{name}_proj.weight"].T for name in "vgz")
        dt = np.logaddexp(z + p["z_proj.bias"], 0.0)
        h = np.zeros_like(v)
        for t in range(x.shape[1]):
            h[:, t] = np.exp(-dt[:, t]) * h[:, t - 1] * (t > 0) + dt[:, t] * v[:, t]
        return (g / (1.0 + np.exp(-g)) * h) @ p["out_proj.weight"].T
