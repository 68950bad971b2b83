"""The implicit filter in float64 NumPy."""

from collections.abc import Mapping

import numpy as np

from mlxhog.models.mad.layers.long_filter import LAYERS, decay, features
from mlxhog.models.mad.plain_numpy import Float


def taps(p: Mapping[str, Float], S: int, T: int) -> Float:
    """Return the taps of S distances, (channels, S); those from T on are 0."""
    w = p[f"filter.{LAYERS - 1}.weight"]
    kept = min(S, T)
    z = features(kept, T)
    for number in range(LAYERS - 1):
        z = np.sin(z @ p[f"filter.{number}.weight"].T + p[f"filter.{number}.bias"])
    return np.pad((w @ z.T) * decay(kept, T, len(w)), ((0, 0), (0, S - kept)))
