"""Gated linear attention in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.gla import GLA, SLOWNESS
from mlxhog.models.mad.plain_numpy import Float, rms_norm, sigmoid, silu
from mlxhog.models.ops.reference.recurrences_numpy import decay_cell


def forward(layer: GLA, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    B, S, d = x.shape
    heads = (B, S, layer.heads, d // layer.heads)
    q, k, v, g = (x @ p[f"{name}.weight"].T for name in ("q_proj", "k_proj", "v_proj", "g_proj"))
    gate = x @ p["decay_down.weight"].T @ p["decay_up.weight"].T + p["decay_up.bias"]
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    log_alpha = np.log(sigmoid(gate).reshape(heads)) / SLOWNESS
    h, _ = decay_cell(q, k, v, log_alpha, scale=heads[-1] ** -0.5)
    h = rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(B, S, d)
    found: Float = (silu(g) * h) @ p["out_proj.weight"].T
    return found
