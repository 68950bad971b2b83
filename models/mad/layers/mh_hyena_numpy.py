"""Hyena of several heads in float64 NumPy: the outer products themselves."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.long_filter_numpy import taps
from mlxhog.models.mad.layers.mh_hyena import MHHyena
from mlxhog.models.mad.plain_numpy import Float
from mlxhog.models.ops.reference.layers_numpy import causal_conv


def forward(layer: MHHyena, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    B, S, d = x.shape
    u = np.tile(x @ p["in_proj.weight"].T + p["in_proj.bias"], (1, 1, layer.groups))
    u, _, _ = causal_conv(u, p["conv.weight"], p["conv.bias"], silu=False)
    q, v, k = (y.reshape(B, S, layer.heads, -1) for y in np.split(u, 3, -1))
    outer = np.einsum("bjhd,bjhe->bjhde", k, v)
    f = taps(p, S, cfg.max_length)
    y = np.empty_like(q)
    for t in range(S):
        Z = np.einsum("hj,bjhde->bhde", f[:, t::-1], outer[:, : t + 1])
        Z += p["skip"][:, None, None] * outer[:, t]
        y[:, t] = np.einsum("bhd,bhde->bhe", q[:, t], Z)
    found: Float = y.reshape(B, S, d) @ p["out_proj.weight"].T + p["out_proj.bias"]
    return found
