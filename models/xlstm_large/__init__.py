"""xLSTM Large, the architecture of xLSTM-7B."""

from mlxhog.models.xlstm_large import model
from mlxhog.models.xlstm_large.config import XLSTMLargeConfig
from mlxhog.models.xlstm_large.model import (
    EMBEDDING,
    LM_HEAD,
    OUT_NORM,
    block_name,
    param_count,
    param_spec,
)

__all__ = [
    "EMBEDDING",
    "LM_HEAD",
    "OUT_NORM",
    "XLSTMLargeConfig",
    "block_name",
    "model",
    "param_count",
    "param_spec",
]
