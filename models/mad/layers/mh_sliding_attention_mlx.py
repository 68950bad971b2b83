"""Attention to the last positions in MLX: attention whose cache is cut."""

from collections.abc import Mapping

from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers import mh_attention_mlx
from mlxhog.models.mad.layers.mh_attention_mlx import State
from mlxhog.models.mad.layers.mh_attention_mlx import init_state as init_state
from mlxhog.models.mad.layers.mh_sliding_attention import MHSlidingAttention


def forward(
    layer: MHSlidingAttention,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    return mh_attention_mlx.forward(layer, cfg, p, x, state, run, window=layer.window)
