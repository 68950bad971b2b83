"""Gated DeltaNet in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.gated_delta_net import GatedDeltaNet
from mlxhog.models.mad.plain_numpy import Float, rms_norm, sigmoid, silu, softplus
from mlxhog.models.ops.reference.layers_numpy import causal_conv
from mlxhog.models.ops.reference.recurrences_numpy import delta_cell


def forward(layer: GatedDeltaNet, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    B, S, d = x.shape
    dh = d // layer.heads
    mixed, _, _ = causal_conv(
        x @ p["qkv_proj.weight"].T, p["conv.weight"], np.zeros(3 * d), silu=True
    )
    q, k, v = (y.reshape(B, S, layer.heads, dh) for y in np.split(mixed, 3, axis=-1))
    q = rms_norm(q, np.full(dh, 1 / dh), cfg.norm_eps)
    k = rms_norm(k, np.full(dh, dh**-0.5), cfg.norm_eps)
    beta = sigmoid(x @ p["b_proj.weight"].T)
    log_decay = np.zeros(beta.shape)
    if layer.decay:
        log_decay = -np.exp(p["A_log"]) * softplus(x @ p["a_proj.weight"].T + p["dt_bias"])
    h, _ = delta_cell(q, k, v, log_decay, beta)
    h = rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(B, S, d)
    found: Float = (silu(x @ p["g_proj.weight"].T) * h) @ p["out_proj.weight"].T
    return found
