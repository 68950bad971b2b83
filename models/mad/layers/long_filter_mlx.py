"""The implicit filter in MLX."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.models.mad.layers.long_filter import LAYERS, decay, features


def taps(p: Mapping[str, array], S: int, T: int) -> array:
    """Return the taps of S distances, (channels, S) float32; those from T on are 0."""
    w = p[f"filter.{LAYERS - 1}.weight"]
    kept = min(S, T)
    z = mx.array(features(kept, T).astype(np.float32))
    for number in range(LAYERS - 1):
        z = mx.sin(z @ p[f"filter.{number}.weight"].T + p[f"filter.{number}.bias"])
    f = (w @ z.T) * mx.array(decay(kept, T, len(w)).astype(np.float32))
    return mx.pad(f, [(0, 0), (0, S - kept)])
