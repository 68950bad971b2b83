"""GEGLU, the gated feed-forward layer of xLSTM's sLSTM blocks: y = W3( GELU(W1 x) * W2 x ).

Its inner width is 1.3 d, rounded up to a multiple of 64: 192 at d = 128. GELU is the exact one.

Source: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202; the width of Beck et al.
2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mlxhog.models.mad.layer import Array, Float, Params, Pass, Sizes, State
from mlxhog.models.mad.layers.swiglu import SwiGLU
from mlxhog.models.ops.reference.layers_numpy import activation


@dataclass(frozen=True, kw_only=True)
class GEGLU(SwiGLU):
    """Numbers of the layer: `inner` is the width between the maps, None the one above."""

    name: ClassVar[str] = "geglu"

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 64 * math.ceil(1.3 * d / 64) if self.inner is None else self.inner

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d)."""
        ops = run.ops
        gate, up = ops.linears(x, [p["w1.weight"], p["w2.weight"]])
        (y,) = ops.linears(ops.glu(gate, up, "gelu"), [p["w3.weight"]])
        return y, ()

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        gate, _ = activation("gelu", x @ p["w1.weight"].T)
        return (gate * (x @ p["w2.weight"].T)) @ p["w3.weight"].T
