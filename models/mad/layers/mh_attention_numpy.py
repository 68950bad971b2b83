"""Attention of several heads in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mh_attention import MHAttention
from mlxhog.models.mad.plain_numpy import Float, rms_norm
from mlxhog.models.ops.reference.attention_numpy import attention, rope


def forward(
    layer: MHAttention,
    cfg: MADConfig,
    p: Mapping[str, Float],
    x: Float,
    *,
    window: int | None = None,
) -> Float:
    """Map x (B, S, d) to y (B, S, d); `window` as in the twins."""
    B, S, d = x.shape

    def mapped(name: str, u: Float) -> Float:
        y: Float = u @ p[f"{name}.weight"].T + p.get(f"{name}.bias", np.zeros(()))
        return y

    q, k, v = (
        mapped(name, x).reshape(B, S, -1, d // layer.heads)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    if layer.qk_norm:
        q = rms_norm(q, p["q_norm.weight"], cfg.norm_eps)
        k = rms_norm(k, p["k_norm.weight"], cfg.norm_eps)
    if layer.rope:
        q, k = rope(q, layer.base), rope(k, layer.base)
    k, v = np.repeat(k, layer.shared, 2), np.repeat(v, layer.shared, 2)
    return mapped("out_proj", attention(q, k, v, window=window).reshape(B, S, d))
