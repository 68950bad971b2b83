"""GEGLU in float64 NumPy."""

from collections.abc import Mapping

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.geglu import GEGLU
from mlxhog.models.mad.plain_numpy import Float
from mlxhog.models.ops.reference.layers_numpy import activation


def forward(layer: GEGLU, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    gate, _ = activation("gelu", x @ p["w1.weight"].T)
    return (gate * (x @ p["w2.weight"].T)) @ p["w3.weight"].T
