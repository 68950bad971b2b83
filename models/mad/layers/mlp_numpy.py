"""The plain feed-forward layer in float64 NumPy."""

from collections.abc import Mapping

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mlp import MLP
from mlxhog.models.mad.plain_numpy import Float, gelu_tanh


def forward(layer: MLP, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    return gelu_tanh(x @ p["w1.weight"].T + p["w1.bias"]) @ p["w2.weight"].T + p["w2.bias"]
