"""Gated linear attention: every element of a key forgets at a speed of its own.

    q, k, v, g = W u                             each (B, S, d), cut into heads of dh = d / heads
    alpha = sigmoid(W_up W_down u + b)^(1 / 16)  (B, S, d), through a bottleneck of `rank`
    S_t = diag(alpha_t) S_{t-1} + k_t v_t^T
    h_t = S_t^T q_t / sqrt(dh)
    y = W_out( SiLU(g) * RMSNorm_head(h) )

Matrices begin small, uniform with Glorot's bound times 2^-2.5, as the reference's do.

Source: Yang et al. 2024, Gated Linear Attention, arXiv:2312.06635; mad-lab.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.checks import check_heads
from mlxhog.models.mad.layers.linear_spec import bias
from mlxhog.models.spec import ParamSpec

CHUNK_SIZE = 32
SLOWNESS = 16.0
"""Root that is taken of the gate, so that a head forgets slowly to begin with."""


@dataclass(frozen=True, kw_only=True)
class GLA:
    """Numbers of the layer: its heads, and the rank of the map to the gate."""

    name: ClassVar[str] = "gla"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 8
    rank: int = 16

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        check_heads(self.heads, d)
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}; the gate's map needs at least 1")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`."""
        for name in ("q_proj", "k_proj", "v_proj", "g_proj"):
            yield _glorot(f"{name}.weight", d, d, product=True)
        yield _glorot("decay_down.weight", self.rank, d)
        yield _glorot("decay_up.weight", d, self.rank)
        yield bias("decay_up.bias", d, self.rank)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield _glorot("out_proj.weight", d, d, product=True)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: S of every head."""
        return {"cell": d * (d // self.heads)}


def _glorot(name: str, out: int, inputs: int, *, product: bool = False) -> ParamSpec:
    bound = 2**-2.5 * math.sqrt(6 / (out + inputs))
    return ParamSpec(name, (out, inputs), f"uniform:{bound!r}", decay=True, product=product)
