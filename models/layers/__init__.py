"""The registry of layers: those of this package, and plug-ins."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from mlxhog.config.components import LAYERS
from mlxhog.errors import ConfigError
from mlxhog.models.fields import check_max, read
from mlxhog.models.layers.attention import MHAttention, MHSlidingAttention, PaTH
from mlxhog.models.layers.convolution import Canon, GatedConv, Hyena, MHHyena
from mlxhog.models.layers.delta import KDA, RWKV7, DeltaNet, GatedDeltaNet, GatedDeltaProduct
from mlxhog.models.layers.feed_forward import GEGLU, MLP, MoESwiGLU, SwiGLU
from mlxhog.models.layers.layer import Layer
from mlxhog.models.layers.linear import GLA, GSA, LinearAttention, Mesa
from mlxhog.models.layers.state_space import SSD, Mamba, Mamba3
from mlxhog.models.layers.xlstm import MLSTMV1, SLSTMV1, MLSTMCell, SLSTMCell

BUILT_IN: tuple[type[Any], ...] = (  # sequence mixers, then channel mixers
    MHAttention, MHSlidingAttention, PaTH, LinearAttention, GLA, GSA, SSD, Mamba, Mamba3,
    DeltaNet, GatedDeltaNet, GatedDeltaProduct, KDA, RWKV7, Mesa, GatedConv, Canon, Hyena, MHHyena,
    MLSTMCell, MLSTMV1, SLSTMCell, SLSTMV1, MLP, SwiGLU, GEGLU, MoESwiGLU,
)  # fmt: skip

METHODS = ("param_spec", "forward")
FIELD_TYPES = (int, float, bool, str, int | None)
EXAMPLE = "see examples/my_layer.py"

known = LAYERS.known

for _layer in BUILT_IN:
    LAYERS.register(_layer)


@LAYERS.checked_by
def _check(layer: type[Any]) -> None:
    """Raise a ConfigError that names what a class lacks to be a layer."""
    if Layer not in layer.__mro__:
        raise ConfigError(f"it is not a Layer of mlxhog.models.layers.layer; {EXAMPLE}")
    if layer.kind not in ("mixer", "channel"):
        raise ConfigError(f"its kind is {layer.kind!r}; it is 'mixer' or 'channel'")
    lacking = [method for method in METHODS if getattr(layer, method) is getattr(Layer, method)]
    if lacking:
        raise ConfigError(f"it has no {', '.join(lacking)}; {EXAMPLE}")
    types = get_type_hints(layer)
    for field in fields(layer):
        if types[field.name] not in FIELD_TYPES or field.default is MISSING:
            raise ConfigError(
                f"{field.name} needs a default and one of the types int, float, bool, str and "
                "int | None"
            )


def make(name: str, hyperparameters: Mapping[str, object] | None = None) -> Layer:
    """Make a layer from its name, a key of `known()`, and hyperparameters, which may be text.

    Raises:
        UnknownChoice: no such layer; the nearest name is given.
        ConfigError: no such field, or a value of another type; the nearest name is given.
    """
    layer = LAYERS.find(name)
    values, _ = read(layer, hyperparameters or {}, strict=True, where=f"{name}.")
    for key, value in values.items():
        if isinstance(value, int):
            check_max(f"{name}.{key}", value)
    result: Layer = layer(**values)
    return result


def to_dict(layer: Layer) -> dict[str, Any]:
    """Return a layer as a mapping for YAML, with every hyperparameter."""
    return {"type": layer.name, **layer.hyperparameters()}


def at_width(layers: Iterable[Layer], d: int) -> tuple[Layer, ...]:
    """Return layers with the hyperparameters that depend on width d."""
    return tuple(layer.at_width(d) for layer in layers)
