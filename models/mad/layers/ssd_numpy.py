"""State-space duality in float64 NumPy, position by position."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.ssd import SSD
from mlxhog.models.mad.plain_numpy import Float, rms_norm, silu, softplus
from mlxhog.models.ops.reference.layers_numpy import causal_conv
from mlxhog.models.ops.reference.recurrences_numpy import decay_cell


def forward(layer: SSD, cfg: MADConfig, p: Mapping[str, Float], x: Float) -> Float:
    """Map x (B, S, d) to y (B, S, d)."""
    B, S, d = x.shape
    inner, N, heads = layer.expand * d, layer.states, layer.heads
    z, mixed, dt = (x @ p[f"{name}.weight"].T for name in ("z_proj", "xbc_proj", "dt_proj"))
    mixed, _, _ = causal_conv(mixed, p["conv.weight"], p["conv.bias"], silu=True)
    u = mixed[..., :inner].reshape(B, S, heads, inner // heads)
    Bt, Ct = (
        np.broadcast_to(y[:, :, None], (B, S, heads, N))
        for y in np.split(mixed[..., inner:], 2, axis=-1)
    )
    dt = softplus(dt + p["dt_bias"])[..., None]
    h, _ = decay_cell(Ct, Bt, dt * u, -np.exp(p["A_log"])[:, None] * dt, scale=1.0)
    h = (h + p["D"][:, None] * u).reshape(B, S, inner)
    found: Float = (
        rms_norm(silu(z) * h, p["out_norm.weight"], cfg.norm_eps) @ p["out_proj.weight"].T
    )
    return found
