"""Mamba, the first, in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mamba import Mamba
from mlxhog.models.mad.plain_numpy import Float, silu, softplus
from mlxhog.models.ops.reference.layers_numpy import causal_conv
from mlxhog.models.ops.reference.recurrences_numpy import selective_scan


def forward(layer: Mamba, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    rank = layer.dt_rank(x.shape[-1])
    u, z = np.split(x @ p["in_proj.weight"].T, 2, axis=-1)
    u, _, _ = causal_conv(u, p["conv.weight"], p["conv.bias"], silu=True)
    low, Bt, Ct = np.split(u @ p["x_proj.weight"].T, [rank, rank + layer.states], axis=-1)
    dt = softplus(low @ p["dt_proj.weight"].T + p["dt_proj.bias"])
    h, _ = selective_scan(u, dt, -np.exp(p["A_log"]), Bt, Ct)
    found: Float = (silu(z) * (h + p["D"] * u)) @ p["out_proj.weight"].T
    return found
