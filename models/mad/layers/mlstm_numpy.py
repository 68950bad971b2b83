"""The mLSTM layer in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mlstm import CELL_EPS, MLSTM
from mlxhog.models.mad.plain_numpy import Float, sigmoid
from mlxhog.models.ops.reference.layers_numpy import causal_conv, layer_norm
from mlxhog.models.ops.reference.mlstm_numpy import recurrent


def forward(layer: MLSTM, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    heads = (*x.shape[:2], layer.heads, -1)
    c = x
    if layer.conv:
        c, _, _ = causal_conv(x, p["conv.weight"], p["conv.bias"], silu=True)
    q, k = ((c @ p[f"{name}_proj.weight"].T).reshape(heads) for name in "qk")
    v = (x @ p["v_proj.weight"].T).reshape(heads)
    i, f = (x @ p[f"{name}.weight"].T + p[f"{name}.bias"] for name in ("igate", "fgate"))
    h, _, _ = recurrent(q, k, v, i, f, eps=CELL_EPS)
    normed, _ = layer_norm(h, cfg.norm_eps)
    y = sigmoid(x @ p["ogate.weight"].T) * (p["head_norm.weight"] * normed.reshape(x.shape))
    found: Float = np.asarray(y) @ p["out_proj.weight"].T
    return found
