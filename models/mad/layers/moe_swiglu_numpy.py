"""The mixture of SwiGLUs in float64 NumPy, expert by expert."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.moe_swiglu import MoESwiGLU
from mlxhog.models.mad.plain_numpy import Float, silu


def forward(layer: MoESwiGLU, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    E, inner = layer.experts, layer.inner
    scores = x @ p["router.weight"].T + p["router.bias"]
    best = np.argsort(scores, -1)[..., E - layer.active :]
    taken = np.zeros(scores.shape, bool)
    np.put_along_axis(taken, best, True, -1)
    weight = np.exp(np.where(taken, scores, -np.inf if layer.router == "top-k" else 0.0))
    share = weight / weight.sum(-1, keepdims=True)
    h = silu(x @ p["w1.weight"].T) * (x @ p["w2.weight"].T)
    y = np.zeros_like(x)
    for expert in range(E):
        if layer.router == "top-k":
            own = slice(expert * inner, (expert + 1) * inner)
            z = h[..., own] @ p["w3.weight"][:, own].T
        else:
            z = h @ p["w3.weight"][expert::E].T
        y += share[..., expert, None] * z
    return y
