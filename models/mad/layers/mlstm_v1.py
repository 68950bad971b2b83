"""The mLSTM layer of the first xLSTM paper: the cell at twice the width, between two projections.

The equations, and the names of the parameters below `xlstm`, are those of an mLSTM block in
`models/xlstm_v1/model.py`, whose functions compute it. It needs no feed-forward layer.

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
from mlxhog.models.xlstm_v1.block_config import MLSTMBlockConfig, MLSTMLayerConfig
from mlxhog.models.xlstm_v1.model import block_spec, embedding_std, normal

PREFIX = "xlstm"


@dataclass(frozen=True, kw_only=True)
class MLSTMV1:
    """Numbers of the layer: heads of the cell, taps of the convolution, sizes of qkv's blocks."""

    name: ClassVar[str] = "mlstm-v1"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 4
    qkv_block: int = 4

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        if self.conv < 1:
            raise ConfigError(f"conv is {self.conv}; a convolution has at least 1 tap")
        if self.qkv_block < 1:
            raise ConfigError(f"qkv_block is {self.qkv_block}; set it to a divisor, such as 4")
        check_heads(self.heads, 64 * -(-2 * d // 64), "inner width")
        block(self, d)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; the last map begins as the first, since depth is not known."""
        cfg = block(self, d)
        for spec in block_spec(cfg, 0, ""):
            name = spec.name.removeprefix(".")
            if name.endswith("proj_down.weight"):
                spec = replace(spec, init=normal(embedding_std(cfg)))
            if name.startswith(f"{PREFIX}."):
                yield replace(spec, name=name)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return the sizes of C, n and m, and the last inputs of the convolution."""
        inner = block(self, d).inner_dim
        DH = inner // self.heads
        return {"cell": self.heads * (DH * DH + DH + 1), "conv": inner * (self.conv - 1)}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return zeros, as an mLSTM block of that family has them."""
        return model.init_state(block(self, d), B, xp)[0]

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        cfg_v1 = block(self, cfg.hidden_size)
        return model.mlstm_layer(cfg_v1, p, PREFIX, x, state, run)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        no_ops: Any = None  # the reference spells its operators out
        run: Pass[Any] = Pass(no_ops)
        cfg_v1 = block(self, cfg.hidden_size)
        y, *_ = reference.mlstm_layer(cfg_v1, p, PREFIX, x, None, {}, run)
        return y


@lru_cache
def block(layer: MLSTMV1, d: int) -> XLSTMV1Config:
    """Return the layer as the one block of a model of that family."""
    settings = MLSTMLayerConfig(
        num_heads=layer.heads, conv1d_kernel_size=layer.conv, qkv_proj_blocksize=layer.qkv_block
    )
    return XLSTMV1Config(
        vocab_size=1, embedding_dim=d, num_blocks=1, mlstm_block=MLSTMBlockConfig(mlstm=settings)
    )
