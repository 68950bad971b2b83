"""Linear attention in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.linear_attention import LinearAttention
from mlxhog.models.mad.plain_numpy import Float


def forward(layer: LinearAttention, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    B, S, d = x.shape
    dh = d // layer.heads
    q, k, v = (
        (x @ p[f"{name}.weight"].T).reshape(B, S, layer.heads, dh)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    q, k = (
        (u @ p[f"{name}.w1.weight"].T) * (u @ p[f"{name}.w2.weight"].T)
        for name, u in (("q_map", q), ("k_map", k))
    )
    cell, z = np.zeros((B, layer.heads, dh, dh)), np.zeros((B, layer.heads, dh))
    h = np.empty(v.shape)
    for t in range(S):
        cell += k[:, t, :, :, None] * v[:, t, :, None]
        z += k[:, t]
        divisor = np.maximum(np.abs((z * q[:, t]).sum(-1)), layer.floor)
        h[:, t] = np.einsum("bhkv,bhk->bhv", cell, q[:, t]) / divisor[..., None]
    found: Float = h.reshape(B, S, d) @ p["out_proj.weight"].T
    return found
