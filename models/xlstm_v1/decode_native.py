"""The original xLSTM stack one token at a time: what `metal/native/ops/decode_v1.cpp` is given."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import XlstmV1Decoder
from mlxhog.models import families
from mlxhog.models.ops.activations import known
from mlxhog.models.xlstm_v1.config import XLSTMV1Config
from mlxhog.models.xlstm_v1.model import (
    CELL_EPS,
    EMBEDDING,
    NORM_EPS,
    OUT_NORM,
    block_name,
)

Float32 = NDArray[np.float32]

_MLSTM = (
    "xlstm_norm",
    "xlstm.proj_up",
    "xlstm.conv1d.conv",
    "xlstm.q_proj",
    "xlstm.k_proj",
    "xlstm.v_proj",
    "xlstm.mlstm_cell.igate",
    "xlstm.mlstm_cell.fgate",
    "xlstm.mlstm_cell.outnorm",
    "xlstm.learnable_skip",
    "xlstm.proj_down",
)
_SLSTM = (
    "xlstm_norm",
    "xlstm.conv1d.conv",
    "xlstm.fgate",  # drives the input gate, see `model.py`
    "xlstm.igate",
    "xlstm.zgate",
    "xlstm.ogate",
    "xlstm.slstm_cell",
    "xlstm.group_norm",
    "ffn_norm",
    "ffn.proj_up",
    "ffn.proj_down",
)
"""The layers of each kind of block, in the order of `metal/native/ops/decode_v1.h`."""

Layer = tuple[Float32 | None, Float32 | None]


def native_step(cfg: XLSTMV1Config, params: Mapping[str, Float32]) -> XlstmV1Decoder:
    """Make the native decoder of a model.

    Args:
        cfg: the model.
        params: name -> float32 array, C-contiguous; they are read where they lie, at every step.
    """
    mlstm = cfg.mlstm_layer if cfg.mlstm_at else None
    slstm = cfg.slstm_layer if cfg.slstm_at else None
    ffn = cfg.feedforward if slstm else None
    inner, reset = cfg.inner_dim if mlstm else 0, families.reset_token(cfg)
    return XlstmV1Decoder(
        d=cfg.embedding_dim,
        V=cfg.vocab_size,
        I=inner,
        mlstm_heads=mlstm.num_heads if mlstm else 0,
        mlstm_taps=mlstm.conv1d_kernel_size if mlstm else 1,
        groups=inner // mlstm.qkv_proj_blocksize if mlstm else 0,
        slstm_heads=slstm.num_heads if slstm else 0,
        slstm_taps=slstm.conv1d_kernel_size if slstm else 0,
        U=cfg.ffn_dim if ffn else 0,
        activation=known(ffn.act_fn) if ffn else "gelu",
        norm_eps=NORM_EPS,
        cell_eps=CELL_EPS,
        reset_token=-1 if reset is None else reset,
        embedding=params[EMBEDDING],
        blocks=[
            (layer in cfg.slstm_at, _layers(cfg, layer, params)) for layer in range(cfg.num_blocks)
        ],
        out_norm=params[f"{OUT_NORM}.weight"] if cfg.add_post_blocks_norm else None,
        head=params[families.head(cfg)],
    )


def _layers(cfg: XLSTMV1Config, layer: int, params: Mapping[str, Float32]) -> list[Layer]:
    p, layers = block_name(layer), list[Layer]()
    for name in _SLSTM if layer in cfg.slstm_at else _MLSTM:
        full = f"{p}.{name}"
        if name == "xlstm.slstm_cell":
            layers.append((params[f"{full}._recurrent_kernel_"], params[f"{full}._bias_"]))
        elif name == "xlstm.learnable_skip":
            layers.append((params[full], None))
        else:
            layers.append((params.get(f"{full}.weight"), params.get(f"{full}.bias")))
    return layers
