"""The sLSTM layer of the first xLSTM paper: block-diagonal gates behind a short convolution.

The equations, and the names of the parameters below `xlstm`, are those of an sLSTM block without
its feed-forward layer in `models/xlstm_v1/model.py`, whose functions compute it; the layer
`geglu` is the other half of that block. Forget biases begin at 3 to 6, since depth is not known.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

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
    check_heads,
)
from mlxhog.models.xlstm_v1 import XLSTMV1Config, model, reference
from mlxhog.models.xlstm_v1.block_config import SLSTMBlockConfig, SLSTMLayerConfig
from mlxhog.models.xlstm_v1.model import block_spec

PREFIX = "xlstm"


@dataclass(frozen=True, kw_only=True)
class SLSTMV1:
    """Numbers of the layer: heads of the cell, taps of the convolution, 0 for none."""

    name: ClassVar[str] = "slstm-v1"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 4

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        if self.conv < 0:
            raise ConfigError(f"conv is {self.conv}; give a number of taps, or 0 for none")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters."""
        for spec in block_spec(block(self, d), 0, ""):
            name = spec.name.removeprefix(".")
            if name.startswith(f"{PREFIX}."):
                yield replace(spec, name=name)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return the sizes of h, c, n and m, and the last inputs of the convolution."""
        return {"cell": 4 * d} | ({"conv": d * (self.conv - 1)} if self.conv else {})

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return zeros, as an sLSTM block of that family has them."""
        return model.init_state(block(self, d), B, xp)[0]

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        cfg_v1 = block(self, cfg.hidden_size)
        return model.slstm_layer(cfg_v1, p, PREFIX, x, state, run)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        no_ops: Any = None  # the reference spells its operators out
        run: Pass[Any] = Pass(no_ops)
        cfg_v1 = block(self, cfg.hidden_size)
        y, *_ = reference.slstm_layer(cfg_v1, p, PREFIX, x, None, {}, run)
        return y


@lru_cache
def block(layer: SLSTMV1, d: int) -> XLSTMV1Config:
    """Return the layer as the one block of a model of that family."""
    settings = SLSTMLayerConfig(
        num_heads=layer.heads, conv1d_kernel_size=layer.conv, bias_init="small_init"
    )
    return XLSTMV1Config(
        vocab_size=1,
        embedding_dim=d,
        num_blocks=1,
        slstm_at=(0,),
        slstm_block=SLSTMBlockConfig(slstm=settings, feedforward=None),
    )
