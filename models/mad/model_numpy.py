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
from mlxhog.models.mad.parameters import DECODER, DECODER_LAYERS, OUT_NORM, POSITION, layer_name
from mlxhog.models.mad.plain_numpy import gelu_tanh, rms_norm
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
    for number, layer in enumerate(cfg.layers):
        p = _below(params, layer_name(number))
        u = rms_norm(x, p["norm.weight"], cfg.norm_eps)
        x = x + twin(type(layer), "numpy").forward(layer, cfg, p, u)
        run.note(x)
    if cfg.backbone == "autoencoder":
        x = x[:, -1:] + sincos(S, cfg.hidden_size)
        for number in range(DECODER_LAYERS):
            p = _below(params, f"{DECODER}.{number}")
            u = rms_norm(x, p["norm.weight"], cfg.norm_eps)
            x = gelu_tanh(u @ p["linear.weight"].T + p["linear.bias"])
            run.note(x)
    x = rms_norm(x, params[OUT_NORM], cfg.norm_eps)
    run.note(x)
    return x


def _below(params: Params, prefix: str) -> dict[str, Float]:
    start = len(prefix) + 1
    return {
        name[start:]: value.astype(np.float64)
        for name, value in params.items()
        if name.startswith(f"{prefix}.")
    }
