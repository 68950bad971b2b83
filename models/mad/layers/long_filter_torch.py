"""The implicit filter in PyTorch."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.mad.layers.long_filter import LAYERS, decay, features


def taps(p: Mapping[str, Tensor], S: int, T: int) -> Tensor:
    """Return the taps of S distances, (channels, S) float32; those from T on are 0."""
    w = p[f"filter.{LAYERS - 1}.weight"]
    kept = min(S, T)
    z = torch.from_numpy(features(kept, T)).to(w)
    for number in range(LAYERS - 1):
        z = torch.sin(F.linear(z, p[f"filter.{number}.weight"], p[f"filter.{number}.bias"]))
    f = (w @ z.T) * torch.from_numpy(decay(kept, T, len(w))).to(w)
    return F.pad(f, (0, S - kept))
