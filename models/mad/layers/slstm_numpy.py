"""The sLSTM layer in float64 NumPy, position by position."""

from collections.abc import Mapping

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.slstm import SLSTM
from mlxhog.models.mad.plain_numpy import Float
from mlxhog.models.ops.reference.layers_numpy import causal_conv, layer_norm
from mlxhog.models.ops.reference.slstm_numpy import slstm_cell


def forward(layer: SLSTM, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    heads = (*x.shape[:2], layer.heads, -1)
    c = x
    if layer.conv:
        c, _, _ = causal_conv(x, p["conv.weight"], p["conv.bias"], silu=True)
    i, f = ((c @ p[f"{gate}gate.weight"].T).reshape(heads) for gate in "if")
    z, o = ((x @ p[f"{gate}gate.weight"].T).reshape(heads) for gate in "zo")
    (h, *_), _ = slstm_cell(i, f, z, o, p["recurrent.weight"], p["recurrent.bias"])
    normed, _ = layer_norm(h, cfg.norm_eps)
    found: Float = (p["head_norm.weight"] * normed.reshape(x.shape)) @ p["out_proj.weight"].T
    return found
