"""Every layer a candidate may have: mixers first, then channel maps."""

from typing import Any

from mlxhog.models.mad.layers.gated_conv import GatedConv
from mlxhog.models.mad.layers.swiglu import SwiGLU

LAYERS: tuple[type[Any], ...] = (
    GatedConv,
    SwiGLU,
)

__all__ = ["LAYERS"]
