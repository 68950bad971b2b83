"""Attention to the last positions in float64 NumPy, position by position."""

from collections.abc import Mapping

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers import mh_attention_numpy
from mlxhog.models.mad.layers.mh_sliding_attention import MHSlidingAttention
from mlxhog.models.mad.plain_numpy import Float


def forward(layer: MHSlidingAttention, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    return mh_attention_numpy.forward(layer, cfg, p, x, window=layer.window)
