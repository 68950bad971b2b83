"""xLSTM Large one token at a time: what `metal/native/ops/decode_large.cpp` is given."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import XlstmLargeDecoder
from mlxhog.models import families
from mlxhog.models.xlstm_large.config import XLSTMLargeConfig
from mlxhog.models.xlstm_large.model import EMBEDDING, OUT_NORM, block_name

_LAYERS = (
    "norm_mlstm",
    "mlstm_layer.q",
    "mlstm_layer.k",
    "mlstm_layer.v",
    "mlstm_layer.ogate_preact",
    "mlstm_layer.igate_preact",
    "mlstm_layer.fgate_preact",
    "mlstm_layer.multihead_norm",
    "mlstm_layer.out_proj",
    "norm_ffn",
    "ffn.proj_up_gate",
    "ffn.proj_up",
    "ffn.proj_down",
)
"""The layers of a block in the order of `BlockLayer` in `metal/native/ops/decode_large.h`."""


def native_step(
    cfg: XLSTMLargeConfig, params: Mapping[str, NDArray[np.float32]]
) -> XlstmLargeDecoder:
    """Make the native decoder of a model.

    Args:
        cfg: the model.
        params: name -> float32 array, C-contiguous; they are read where they lie, at every step.
    """
    blocks = [
        [(params[f"{p}.{name}.weight"], params.get(f"{p}.{name}.bias")) for name in _LAYERS]
        for p in map(block_name, range(cfg.num_hidden_layers))
    ]
    reset = families.reset_token(cfg)
    return XlstmLargeDecoder(
        d=cfg.hidden_size,
        heads=cfg.num_heads,
        DK=cfg.qk_head_dim,
        DV=cfg.v_head_dim,
        U=cfg.ffn_dim,
        V=cfg.vocab_size,
        norm_eps=cfg.norm_eps,
        eps=cfg.eps,
        gate_cap=cfg.gate_soft_cap,
        logit_cap=cfg.output_logit_soft_cap,
        reset_token=-1 if reset is None else reset,
        embedding=params[EMBEDDING],
        blocks=blocks,
        out_norm=params.get(f"{OUT_NORM}.weight"),
        out_norm_bias=params.get(f"{OUT_NORM}.bias"),
        head=params[families.head(cfg)],
    )
