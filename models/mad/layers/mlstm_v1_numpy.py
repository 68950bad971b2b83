"""The mLSTM layer of the first xLSTM paper in float64 NumPy, position by position."""

from collections.abc import Mapping
from typing import Any

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mlstm_v1 import MLSTMV1, PREFIX, block
from mlxhog.models.mad.plain_numpy import Float
from mlxhog.models.xlstm_v1.reference import mlstm_layer


def forward(layer: MLSTMV1, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    run: Pass[Any] = Pass(None)  # type: ignore[arg-type]  # the reference spells its operators out
    cfg_v1 = block(layer, cfg.hidden_size)
    y, *_ = mlstm_layer(cfg_v1, p, PREFIX, x, None, {}, run)
    return y
