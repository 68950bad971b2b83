"""Hyena in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.hyena import Hyena
from mlxhog.models.mad.layers.long_filter_numpy import taps
from mlxhog.models.mad.plain_numpy import Float
from mlxhog.models.ops.reference.layers_numpy import causal_conv


def forward(layer: Hyena, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    u = np.tile(x @ p["in_proj.weight"].T + p["in_proj.bias"], (1, 1, layer.groups))
    u, _, _ = causal_conv(u, p["conv.weight"], p["conv.bias"], silu=False)
    x0, x1, v = np.split(u, 3, -1)
    w = v * x1
    f = taps(p, x.shape[1], cfg.max_length)
    y = p["skip"] * w
    for t in range(x.shape[1]):
        for j in range(t + 1):
            y[:, t] += f[:, t - j] * w[:, j]
    found: Float = (x0 * y) @ p["out_proj.weight"].T + p["out_proj.bias"]
    return found
