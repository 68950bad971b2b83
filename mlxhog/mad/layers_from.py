"""Layers from a file of yours: `--layers-from FILE`.

Every frozen dataclass of the file that has a `name` and a `kind` is a layer as `Layer` says;
`examples/my_layer.py` is one. `extensions` brings them to other processes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

from mlxhog.errors import ConfigError
from mlxhog.mad import extensions
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import register

NAME = re.compile(r"[A-Za-z][\w-]*")
METHODS = ("check", "param_spec", "state", "init_state", "forward", "reference")
NUMBERS = (int, float, bool, str, int | None)
EXAMPLE = "see examples/my_layer.py"


def load(file: str | Path) -> None:
    """Import a file and register its layers in this process; a second time does nothing.

    Raises:
        ConfigError: it cannot be read or imported, or what it defines is no layer.
    """
    module = extensions.load_extensions(file)
    layers = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and hasattr(value, "name")
        and hasattr(value, "kind")
    ]
    if not layers:
        raise ConfigError(f"{file} defines no layer: no class has a name and a kind; {EXAMPLE}")
    for layer in layers:
        try:
            _check(layer)
            register(layer)
        except ConfigError as error:
            raise ConfigError(f"{file}: class {layer.__name__}: {error}") from error


def files_of(layers: Iterable[Layer]) -> tuple[extensions.Extension, ...]:
    """Return the files that layers come from; none for those of the package."""
    modules = {type(layer).__module__ for layer in layers}
    return tuple(file for file in extensions.loaded() if file.module in modules)


def _check(layer: type[Any]) -> None:
    """Refuse a class that could not be used.

    Raises:
        ConfigError: says what it lacks.
    """
    params = getattr(layer, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise ConfigError("a layer is a dataclass(frozen=True, kw_only=True)")
    if not isinstance(layer.name, str) or not NAME.fullmatch(layer.name):
        raise ConfigError(
            f"its name is {layer.name!r}; use a letter and then letters, digits, '-' or '_'"
        )
    if layer.kind not in ("mixer", "channel"):
        raise ConfigError(f"its kind is {layer.kind!r}; it is 'mixer' or 'channel'")
    lacking = [method for method in METHODS if not callable(getattr(layer, method, None))]
    if lacking:
        raise ConfigError(f"it has no {', '.join(lacking)}; {EXAMPLE}")
    types = get_type_hints(layer)
    for field in dataclasses.fields(layer):
        if types[field.name] not in NUMBERS or field.default is dataclasses.MISSING:
            raise ConfigError(
                f"{field.name} needs a default and one of the types int, float, bool, str and "
                "int | None"
            )
