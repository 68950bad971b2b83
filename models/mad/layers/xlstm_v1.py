"""The mLSTM and the sLSTM layer of the first xLSTM paper.

The equations, and the names of the parameters below `xlstm`, are those of a block in
`models/xlstm_v1/model.py`, whose functions compute it. The mLSTM layer has its cell at twice the
width, between two projections, and needs no feed-forward layer. The sLSTM layer is a block without
its feed-forward layer, block-diagonal gates behind a short convolution; the layer `geglu` is the
other half of that block. Forget biases begin at 3 to 6, since depth is not known.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517, and the package xlstm 2.0.6.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

from mlxhog.models.mad.layer import *
from mlxhog.models.xlstm_v1 import XLSTMV1Config, model
from mlxhog.models.xlstm_v1.block_config import (
    MLSTMBlockConfig,
    MLSTMLayerConfig,
    SLSTMBlockConfig,
    SLSTMLayerConfig,
)
from mlxhog.models.xlstm_v1.model import block_spec, embedding_std, normal

PREFIX = "xlstm"


@dataclass(frozen=True, kw_only=True)
class _V1Layer(Layer, ABC):
    """Heads of the cell and taps of the convolution, of a layer that is a block of that family."""

    cell_arrays: ClassVar[int]

    heads: int = 4
    conv: int = 4

    @abstractmethod
    def block(self, d: int) -> XLSTMV1Config:
        """Return the layer as the one block of a model of that family."""

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        cfg = _block(self, d)
        for spec in block_spec(cfg, 0, ""):
            name = spec.name.removeprefix(".")
            if name.endswith("proj_down.weight"):
                spec = replace(spec, init=normal(embedding_std(cfg)))
            if name.startswith(f"{PREFIX}."):
                yield replace(spec, name=name)

    def state_shapes(self, d: int, length: int) -> Shapes:
        (shapes,) = model.state_shapes(_block(self, d))
        inputs, cell = shapes[: -self.cell_arrays], shapes[-self.cell_arrays :]
        return {"conv": inputs, "cell": cell} if inputs else {"cell": cell}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        layer = model.slstm_layer if isinstance(self, SLSTMV1) else model.mlstm_layer
        return layer(_block(self, cfg.hidden_size), p, PREFIX, x, state, run)


@lru_cache
def _block(layer: _V1Layer, d: int) -> XLSTMV1Config:
    return layer.block(d)


@dataclass(frozen=True, kw_only=True)
class MLSTMV1(_V1Layer):
    """Numbers of the layer: heads of the cell, taps of the convolution, sizes of qkv's blocks."""

    name = "mlstm-v1"
    about = "mLSTM of the first xLSTM paper, inside an up-projection"
    cell_arrays: ClassVar[int] = 3

    qkv_block: int = 4

    def check(self, d: int) -> None:
        check_positive(conv=self.conv)
        if self.qkv_block < 1:
            raise ConfigError(f"qkv_block is {self.qkv_block}; set it to a divisor, such as 4")
        check_heads(self.heads, 64 * -(-2 * d // 64), "inner width")
        _block(self, d)

    def block(self, d: int) -> XLSTMV1Config:
        """Return the layer as the one block of a model of that family."""
        layer = MLSTMLayerConfig(
            num_heads=self.heads, conv1d_kernel_size=self.conv, qkv_proj_blocksize=self.qkv_block
        )
        block = MLSTMBlockConfig(mlstm=layer)
        return XLSTMV1Config(vocab_size=1, embedding_dim=d, num_blocks=1, mlstm_block=block)


@dataclass(frozen=True, kw_only=True)
class SLSTMV1(_V1Layer):
    """Numbers of the layer: heads of the cell, taps of the convolution, 0 for none."""

    name = "slstm-v1"
    about = "sLSTM of the first xLSTM paper"
    cell_arrays: ClassVar[int] = 4

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        if self.conv < 0:
            raise ConfigError(f"conv is {self.conv}; give a number of taps, or 0 for none")

    def block(self, d: int) -> XLSTMV1Config:
        """Return the layer as the one block of a model of that family."""
        layer = SLSTMLayerConfig(
            num_heads=self.heads, conv1d_kernel_size=self.conv, bias_init="small_init"
        )
        block = SLSTMBlockConfig(slstm=layer, feedforward=None)
        return XLSTMV1Config(
            vocab_size=1, embedding_dim=d, num_blocks=1, slstm_at=(0,), slstm_block=block
        )
