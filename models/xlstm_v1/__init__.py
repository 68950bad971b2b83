"""The original xLSTM stack of mLSTM and sLSTM blocks."""

from mlxhog.models.xlstm_v1 import model
from mlxhog.models.xlstm_v1.config import XLSTMV1Config
from mlxhog.models.xlstm_v1.model import (
    EMBEDDING,
    LM_HEAD,
    OUT_NORM,
    block_name,
    dropout_sites,
    param_count,
    param_spec,
)

__all__ = [
    "EMBEDDING",
    "LM_HEAD",
    "OUT_NORM",
    "XLSTMV1Config",
    "block_name",
    "dropout_sites",
    "model",
    "param_count",
    "param_spec",
]
