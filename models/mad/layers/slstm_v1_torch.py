"""The sLSTM layer of the first xLSTM paper in PyTorch."""

from collections.abc import Mapping

from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.slstm_v1 import PREFIX, SLSTMV1, block
from mlxhog.models.ops import arrays_torch
from mlxhog.models.xlstm_v1 import model

State = model.State


def init_state(layer: SLSTMV1, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    return model.init_state(block(layer, d), B, arrays_torch)[0]


def forward(
    layer: SLSTMV1,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    cfg_v1 = block(layer, cfg.hidden_size)
    return model.slstm_layer(cfg_v1, p, PREFIX, x, state, run)
