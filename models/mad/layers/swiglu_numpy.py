"""SwiGLU in float64 NumPy."""

from collections.abc import Mapping

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.swiglu import SwiGLU
from mlxhog.models.mad.plain_numpy import Float, silu


def forward(layer: SwiGLU, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    return (silu(x @ p["w1.weight"].T) * (x @ p["w2.weight"].T)) @ p["w3.weight"].T
