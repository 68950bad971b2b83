"""Every layer a candidate may have: mixers first, then channel maps."""

from typing import Any

from mlxhog.models.mad.layers.gated_conv import GatedConv
from mlxhog.models.mad.layers.geglu import GEGLU
from mlxhog.models.mad.layers.mlp import MLP
from mlxhog.models.mad.layers.mlstm import MLSTM
from mlxhog.models.mad.layers.mlstm_v1 import MLSTMV1
from mlxhog.models.mad.layers.slstm import SLSTM
from mlxhog.models.mad.layers.slstm_v1 import SLSTMV1
from mlxhog.models.mad.layers.swiglu import SwiGLU

LAYERS: tuple[type[Any], ...] = (
    GatedConv,
    MLSTM,
    MLSTMV1,
    SLSTM,
    SLSTMV1,
    MLP,
    SwiGLU,
    GEGLU,
)

__all__ = ["LAYERS"]
