"""What a layer is: a frozen dataclass of its numbers, which declares its parameters and its state.

The module of a layer `m.py` has three twins beside it, `m_torch.py`, `m_mlx.py` and `m_numpy.py`.
Those of the frameworks have

    init_state(layer, d, B)                     the state before the first token, a tuple of arrays
    forward(layer, cfg, p, x, state, run)       (B, S, d) -> (B, S, d) and the state after the last

where `p` maps the layer's own names to arrays, and a `state` of None is the start. The NumPy twin
has `forward(layer, cfg, p, x) -> y`, position by position in float64: the form that the others are
compared with. This module imports no framework.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol, get_type_hints

from mlxhog.errors import ConfigError
from mlxhog.models.fields import check_most, check_names, convert
from mlxhog.models.spec import ParamSpec


class Layer(Protocol):
    """One layer's numbers; frozen, hashable, picklable."""

    name: ClassVar[str]
    kind: ClassVar[Literal["mixer", "channel"]]

    def check(self, d: int) -> None:
        """Refuse what cannot be built at width d.

        Raises:
            ConfigError: which number, and which are possible.
        """

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters under the layer's own names, in the order of use."""

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Numbers kept per sequence after `length` tokens, by part ("cell", "conv", "cache")."""


@lru_cache
def known() -> dict[str, type[Any]]:
    """Every layer by its name."""
    from mlxhog.models.mad.layers import LAYERS

    return {layer.name: layer for layer in LAYERS}


def make(name: str, numbers: Mapping[str, object] | None = None) -> Layer:
    """Make a layer from what a YAML file says of it.

    Args:
        name: a key of `known()`.
        numbers: field -> value; the others keep their defaults.

    Raises:
        ConfigError: no such layer or field, or a value of another type; the nearest name is given.
    """
    if name not in known():
        raise ConfigError(f"no layer {name!r}; {_near(name, known())}")
    layer = known()[name]
    types = get_type_hints(layer)
    own = [field.name for field in fields(layer)]
    values = {}
    check_names(f"layer {name}", numbers or {})
    for key, value in (numbers or {}).items():
        if key not in own:
            raise ConfigError(f"layer {name} has no {key!r}; {_near(key, own)}")
        values[key] = convert(f"{name}.{key}", value, types[key])
        if types[key] is not float and isinstance(read := values[key], int):
            check_most(f"{name}.{key}", read)
    made: Layer = layer(**values)
    return made


def to_dict(layer: Layer) -> dict[str, Any]:
    """Return a layer as YAML writes it, every number spelt out."""
    return {"type": layer.name, **asdict(layer)}  # type: ignore[call-overload]


@lru_cache
def twin(layer: type[Any], framework: str) -> ModuleType:
    """Import a layer's twin; `framework` is "torch", "mlx" or "numpy"."""
    return importlib.import_module(f"{layer.__module__}_{framework}")


def _near(name: str, of: Iterable[str]) -> str:
    known_names = sorted(of)
    near = difflib.get_close_matches(name, known_names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(known_names)}" if known_names else "it has no numbers"
