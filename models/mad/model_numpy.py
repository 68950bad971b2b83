"""A MAD candidate in float64 NumPy, position by position: what the frameworks' twins must compute.

Only forward: a gradient is compared between the frameworks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layer import twin
from mlxhog.models.mad.parameters import OUT_NORM, POSITION, decoder_params, layer_params
from mlxhog.models.mad.plain_numpy import gelu, rms_norm
from mlxhog.models.mad.positions import sincos

Float = NDArray[np.float64]
Params = Mapping[str, NDArray[Any]]


def hidden(cfg: MADConfig, params: Params, x: Float, run: Pass[Any]) -> Float:
    """From the embedded tokens (B, S, d) to the final norm, noted as the twins do."""
    S = x.shape[1]
    if cfg.position == "learned":
        x = x + params[POSITION][:S]
    elif cfg.position == "sincos":
        x = x + sincos(S, cfg.hidden_size)
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    for layer, p in zip(cfg.layers, layer_params(cfg, wide), strict=True):
        u = rms_norm(x, p["norm.weight"], cfg.norm_eps)
        x = x + twin(type(layer), "numpy").forward(layer, cfg, p, u)
        run.note(x)
    if cfg.backbone == "autoencoder":
        x = x[:, -1:] + sincos(S, cfg.hidden_size)
        for p in decoder_params(cfg, wide):
            u = rms_norm(x, p["norm.weight"], cfg.norm_eps)
            x = gelu(u @ p["linear.weight"].T + p["linear.bias"])
            run.note(x)
    x = rms_norm(x, params[OUT_NORM], cfg.norm_eps)
    run.note(x)
    return x
