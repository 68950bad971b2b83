"""Attention to the last positions in PyTorch: attention whose cache is cut."""

from collections.abc import Mapping

from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers import mh_attention_torch
from mlxhog.models.mad.layers.mh_attention_torch import State
from mlxhog.models.mad.layers.mh_attention_torch import init_state as init_state
from mlxhog.models.mad.layers.mh_sliding_attention import MHSlidingAttention


def forward(
    layer: MHSlidingAttention,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    return mh_attention_torch.forward(layer, cfg, p, x, state, run, window=layer.window)
