"""The mLSTM layer of the first xLSTM paper in MLX."""

from collections.abc import Mapping

from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mlstm_v1 import MLSTMV1, PREFIX, block
from mlxhog.models.ops import arrays_mlx
from mlxhog.models.xlstm_v1 import model

State = model.State


def init_state(layer: MLSTMV1, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    return model.init_state(block(layer, d), B, arrays_mlx)[0]


def forward(
    layer: MLSTMV1,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    cfg_v1 = block(layer, cfg.hidden_size)
    return model.mlstm_layer(cfg_v1, p, PREFIX, x, state, run)
