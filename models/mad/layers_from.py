"""Layers from a file of yours: `--layers-from FILE`.

The file is Python. Every frozen dataclass in it that has a `name` and a `kind` is a layer as
`layer.py` says; `examples/my_layer.py` is one. A layer that travels to another process, in a
configuration, takes along where it came from, and that process imports the same file.
"""

from __future__ import annotations

import copyreg
import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from mlxhog.config import limits
from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import known, register

NAME = re.compile(r"[A-Za-z][\w-]*")
METHODS = ("check", "param_spec", "state", "init_state", "forward", "reference")
NUMBERS = (int, float, bool, str, int | None)
EXAMPLE = "see examples/my_layer.py"

_MODULES: dict[str, ModuleType] = {}
"""By the digest of the file's bytes."""


def load(file: str | Path, digest: str | None = None) -> None:
    """Import a file and register its layers in this process; a second time does nothing.

    Args:
        file: the Python file.
        digest: SHA-256 of what has to be in it; None for anything.

    Raises:
        ConfigError: it cannot be read or imported, is another than `digest` says, or what it
            defines is no layer.
    """
    if digest in _MODULES:
        return
    path = Path(file).expanduser().resolve()
    try:
        source = limits.read_bytes(path, limits.MOST_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the layers of {file}: {error}; give a Python file"
        ) from error
    actual = hashlib.sha256(source).hexdigest()
    if digest is not None and actual != digest:
        raise ConfigError(
            f"{path} has changed since its layers were read here first; begin the run again"
        )
    if actual in _MODULES:
        return
    module = _imported(path, source, actual)
    layers = [value for value in vars(module).values() if _is_own_layer(value, module)]
    if not layers:
        raise ConfigError(
            f"{path} defines no layer: no dataclass with a name and a kind; {EXAMPLE}"
        )
    for layer in layers:
        try:
            _check(layer)
            register(layer)
        except ConfigError as error:
            raise ConfigError(f"{path}: class {layer.__name__}: {error}") from error
        copyreg.pickle(layer, _Origin(str(path), actual))
    _MODULES[actual] = module


def digests(layers: Iterable[Layer]) -> dict[str, str]:
    """Return name -> digest of the file, for those layers that came from one."""
    origins = {type(layer): copyreg.dispatch_table.get(type(layer)) for layer in layers}
    return {
        layer.name: origin.digest
        for layer, origin in origins.items()
        if isinstance(origin, _Origin)
    }


def _imported(path: Path, source: bytes, digest: str) -> ModuleType:
    """Execute a file as a module of its own name, which no import statement reaches."""
    module = ModuleType(f"mlxhog_layers_from_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for their annotations
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except Exception as error:
        del sys.modules[module.__name__]
        raise ConfigError(
            f"{path} cannot be imported: {type(error).__name__}: {error}; {EXAMPLE}"
        ) from error
    return module


def _is_own_layer(value: object, module: ModuleType) -> bool:
    """Whether a class of the file is meant to be a layer."""
    return (
        isinstance(value, type)
        and value.__module__ == module.__name__
        and hasattr(value, "name")
        and hasattr(value, "kind")
    )


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


class _Origin:
    """Pickles layers of one file: as the file, what has to be in it, and the numbers."""

    def __init__(self, path: str, digest: str) -> None:
        self._path, self.digest = path, digest

    def __call__(self, layer: Any) -> tuple[Any, ...]:
        numbers = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
        return _unpickled, (self._path, self.digest, layer.name, numbers)


def _unpickled(path: str, digest: str, name: str, numbers: dict[str, Any]) -> Layer:
    load(path, digest)
    layer: Layer = known()[name](**numbers)
    return layer
