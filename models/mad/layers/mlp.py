"""The plain feed-forward layer: y = W2 GELU(W1 x + b1) + b2, GELU in its form with tanh.

Its inner width is 4 d.

Source: Vaswani et al. 2017, arXiv:1706.03762; the activation of mad-lab.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

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
    bias,
    linear,
)
from mlxhog.models.mad.plain_numpy import gelu_tanh


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Numbers of the layer: `inner` is the width between the maps, None the one above."""

    name: ClassVar[str] = "mlp"
    kind: ClassVar[Literal["mixer", "channel"]] = "channel"

    inner: int | None = None

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 4 * d if self.inner is None else self.inner

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        if self.width(d) < 1:
            raise ConfigError(f"inner is {self.inner}; set it to at least 1, or leave it out")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        U = self.width(d)
        yield linear("w1.weight", U, d)
        yield bias("w1.bias", U, d)
        yield linear("w2.weight", d, U)
        yield bias("w2.bias", d, U)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return no sizes: positions do not meet."""
        return {}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return nothing: positions do not meet."""
        return ()

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d)."""
        ops = run.ops
        (u,) = ops.linears(x, [p["w1.weight"]], [p["w1.bias"]])
        u = ops.activate(u, "gelu_tanh")
        (y,) = ops.linears(u, [p["w2.weight"]], [p["w2.bias"]])
        return y, ()

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        return gelu_tanh(x @ p["w1.weight"].T + p["w1.bias"]) @ p["w2.weight"].T + p["w2.bias"]
