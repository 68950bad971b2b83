"""The gated short convolution in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.gated_conv import GatedConv
from mlxhog.models.mad.plain_numpy import Float


def forward(layer: GatedConv, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    b, c, v = np.split(x @ p["in_proj.weight"].T, 3, axis=-1)
    u, taps, k = b * v, p["conv.weight"][:, 0], layer.kernel
    y = np.zeros_like(u)
    for t in range(x.shape[1]):
        for j in range(min(k, t + 1)):
            y[:, t] += taps[:, k - 1 - j] * u[:, t - j]
    found: Float = (c * y) @ p["out_proj.weight"].T
    return found
