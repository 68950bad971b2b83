"""SwiGLU, the gated feed-forward layer: y = W3( SiLU(W1 x) * W2 x ).

Its inner width is 8 d / 3, rounded down to a whole number and then up to a multiple of 16: 352 at
d = 128.

Source: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202; the width of mad-lab.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Array, Arrays, Float, Params, ParamSpec, Pass, Sizes, State
from mlxhog.models.mad.plain_numpy import silu


@dataclass(frozen=True, kw_only=True)
class SwiGLU:
    """Numbers of the layer: `inner` is the width between the maps, None the one above."""

    name: ClassVar[str] = "swiglu"
    kind: ClassVar[Literal["mixer", "channel"]] = "channel"

    inner: int | None = None

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 16 * math.ceil(8 * d // 3 / 16) if self.inner is None else self.inner

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        if self.width(d) < 1:
            raise ConfigError(f"inner is {self.inner}; set it to at least 1, or leave it out")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        U = self.width(d)
        up, down = f"uniform:{1 / math.sqrt(d)!r}", f"uniform:{1 / math.sqrt(U)!r}"
        yield ParamSpec("w1.weight", (U, d), up, decay=True, product=True)
        yield ParamSpec("w2.weight", (U, d), up, decay=True, product=True)
        yield ParamSpec("w3.weight", (d, U), down, decay=True, product=True)

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
        gate, up = ops.linears(x, [p["w1.weight"], p["w2.weight"]])
        (y,) = ops.linears(ops.swiglu(gate, up), [p["w3.weight"]])
        return y, ()

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        return (silu(x @ p["w1.weight"].T) * (x @ p["w2.weight"].T)) @ p["w3.weight"].T
