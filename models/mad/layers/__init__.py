"""Every layer a candidate may have: mixers first, then channel maps."""

from typing import Any

from mlxhog.models.mad.layers.gated_conv import GatedConv
from mlxhog.models.mad.layers.gated_delta_net import GatedDeltaNet
from mlxhog.models.mad.layers.geglu import GEGLU
from mlxhog.models.mad.layers.gla import GLA
from mlxhog.models.mad.layers.hyena import Hyena
from mlxhog.models.mad.layers.linear_attention import LinearAttention
from mlxhog.models.mad.layers.mamba import Mamba
from mlxhog.models.mad.layers.mh_attention import MHAttention
from mlxhog.models.mad.layers.mh_hyena import MHHyena
from mlxhog.models.mad.layers.mh_sliding_attention import MHSlidingAttention
from mlxhog.models.mad.layers.mlp import MLP
from mlxhog.models.mad.layers.mlstm import MLSTM
from mlxhog.models.mad.layers.mlstm_v1 import MLSTMV1
from mlxhog.models.mad.layers.moe_swiglu import MoESwiGLU
from mlxhog.models.mad.layers.slstm import SLSTM
from mlxhog.models.mad.layers.slstm_v1 import SLSTMV1
from mlxhog.models.mad.layers.ssd import SSD
from mlxhog.models.mad.layers.swiglu import SwiGLU

LAYERS: tuple[type[Any], ...] = (
    MHAttention,
    MHSlidingAttention,
    LinearAttention,
    GLA,
    SSD,
    Mamba,
    GatedDeltaNet,
    GatedConv,
    Hyena,
    MHHyena,
    MLSTM,
    MLSTMV1,
    SLSTM,
    SLSTMV1,
    MLP,
    SwiGLU,
    GEGLU,
    MoESwiGLU,
)

__all__ = ["LAYERS"]
