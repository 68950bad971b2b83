"""Every layer a candidate may have, by its name: those of this package, and registered ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any, get_type_hints

from mlxhog.errors import ConfigError
from mlxhog.models.fields import check_most, check_names, convert
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers.attention import MHAttention, MHSlidingAttention
from mlxhog.models.mad.layers.feed_forward import GEGLU, MLP, SwiGLU
from mlxhog.models.mad.layers.gated_conv import GatedConv
from mlxhog.models.mad.layers.gated_delta_net import GatedDeltaNet
from mlxhog.models.mad.layers.gla import GLA
from mlxhog.models.mad.layers.hyena import Hyena, MHHyena
from mlxhog.models.mad.layers.linear_attention import LinearAttention
from mlxhog.models.mad.layers.mamba import Mamba
from mlxhog.models.mad.layers.moe_swiglu import MoESwiGLU
from mlxhog.models.mad.layers.ssd import SSD
from mlxhog.models.mad.layers.xlstm import MLSTM, SLSTM
from mlxhog.models.mad.layers.xlstm_v1 import MLSTMV1, SLSTMV1

LAYERS: tuple[type[Any], ...] = (  # mixers first, then channel maps
    MHAttention,
    MHSlidingAttention,
    LinearAttention,
    GLA,
    SSD,
    Mamba,
    GatedDeltaNet,
    GatedConv,
    Hyena,
    MHHyena,
    MLSTM,
    MLSTMV1,
    SLSTM,
    SLSTMV1,
    MLP,
    SwiGLU,
    GEGLU,
    MoESwiGLU,
)

_BY_NAME: dict[str, type[Any]] = {layer.name: layer for layer in LAYERS}


def known() -> Mapping[str, type[Any]]:
    """Every layer by its name."""
    return MappingProxyType(_BY_NAME)


def register(layer: type[Any]) -> None:
    """Let lines of layers and YAML files of this process name another layer.

    Raises:
        ConfigError: the name is taken.
    """
    if _BY_NAME.setdefault(layer.name, layer) is not layer:
        raise ConfigError(f"there is a layer {layer.name!r} already; give yours another name")


class UnknownLayer(ConfigError):
    """There is no layer of a name.

    Attributes:
        name: the name.
    """

    def __init__(self, name: str) -> None:
        hint = _near(name, _BY_NAME, "the layers are")
        super().__init__(
            f"no layer {name!r}; {hint} A layer of your own needs the file that defines it: "
            "--layers-from FILE"
        )
        self.name = name


def make(name: str, numbers: Mapping[str, object] | None = None) -> Layer:
    """Make a layer from what a YAML file says of it.

    Args:
        name: a key of `known()`.
        numbers: field -> value; the others keep their defaults.

    Raises:
        UnknownLayer: no such layer; the nearest name is given.
        ConfigError: no such field, or a value of another type; the nearest name is given.
    """
    if name not in _BY_NAME:
        raise UnknownLayer(name)
    layer = _BY_NAME[name]
    types = get_type_hints(layer)
    own = [field.name for field in fields(layer)]
    values = {}
    check_names(f"layer {name}", numbers or {})
    for key, value in (numbers or {}).items():
        if key not in own:
            raise ConfigError(
                f"layer {name} has no number {key!r}; {_near(key, own, 'its numbers are')}"
            )
        values[key] = convert(f"{name}.{key}", value, types[key])
        if types[key] is not float and isinstance(number := values[key], int):
            check_most(f"{name}.{key}", number)
    result: Layer = layer(**values)
    return result


def at_width(layers: Iterable[Layer], d: int) -> tuple[Layer, ...]:
    """Return layers with every number that follows from width d, where they leave it open.

    A layer that has such numbers has a method `at_width`.
    """
    return tuple(layer.at_width(d) if hasattr(layer, "at_width") else layer for layer in layers)


def to_dict(layer: Layer) -> dict[str, Any]:
    """Return a layer as YAML writes it, with every number."""
    return {"type": layer.name, **asdict(layer)}  # type: ignore[call-overload]


def _near(name: str, names: Iterable[str], these_are: str) -> str:
    options = sorted(names)
    near = difflib.get_close_matches(name, options, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"{these_are} {', '.join(options)}." if options else "it has none."
