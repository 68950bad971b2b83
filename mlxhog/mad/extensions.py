"""Python files of a user that add layers or tasks to `mlxhog mad`.

A file is executed once in a process. It registers what it defines, as the package's own modules
do. Instances of its classes can be sent to other processes, which load the file before they
unpickle them; an `Extension` in a configuration has the same effect.
"""

from __future__ import annotations

import copyreg
import dataclasses
import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from mlxhog.errors import ConfigError
from mlxhog.files.paths import expanded
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import register

_PREFIX = "mlxhog_extension_"


@dataclass(frozen=True)
class Extension:
    """A file that was loaded; unpickling it loads the file, unless this process has it.

    Attributes:
        path: of the file, absolute.
        digest: SHA-256 of its bytes, in hexadecimal.
    """

    path: str
    digest: str

    @property
    def module(self) -> str:
        """Name of the module; another file, or the same one changed, is another module."""
        return f"{_PREFIX}{Path(self.path).stem}_{self.digest[:16]}"

    def load(self) -> ModuleType:
        """Return the file's module.

        Raises:
            ConfigError: the file is gone, has changed since, or cannot be executed.
        """
        return _load(self.path, self.digest)

    def __reduce__(self) -> tuple[Callable[..., Extension], tuple[str, str]]:
        """Load the file where this is unpickled."""
        return _restore_extension, (self.path, self.digest)


_loaded: dict[Extension, ModuleType] = {}


def loaded() -> tuple[Extension, ...]:
    """Return the files that this process has loaded, in that order."""
    return tuple(_loaded)


def load_extensions(path: str | Path) -> ModuleType:
    """Execute a file and return its module; one that is loaded already is not executed again.

    Raises:
        ConfigError: the file cannot be read, is no Python, or raises an error: which, and in which
            line.
    """
    return _load(str(expanded(path).absolute()))


def _load(path: str, digest: str | None = None) -> ModuleType:
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read it: {error.strerror or error}; give a Python file"
        ) from error
    extension = Extension(path, hashlib.sha256(source).hexdigest())
    if digest not in (None, extension.digest):
        raise ConfigError(
            f"{path} has changed since it was loaded; restore it, or begin again with the new file"
        )
    if extension not in _loaded:
        _loaded[extension] = _execute(extension, source)
    return _loaded[extension]


def _execute(extension: Extension, source: bytes) -> ModuleType:
    spec = spec_from_file_location(extension.module, extension.path)
    if spec is None:
        raise ConfigError(f"{extension.path}: not a Python file; give one whose name ends in .py")
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look there for their module
    try:
        exec(compile(source, extension.path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[module.__name__]
        if not isinstance(error, Exception):
            raise
        raise ConfigError(_explain(extension.path, error)) from error
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            copyreg.pickle(value, _reducer(extension))
    return module


def _explain(path: str, error: Exception) -> str:
    """Return an error of the file with the line it comes from."""
    if isinstance(error, SyntaxError):
        line, what = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == path), None)
        what = str(error)
    where = path if line is None else f"{path}, line {line}"
    if isinstance(error, ConfigError):
        return f"{where}: {what}"
    return f"{where}: {type(error).__name__}: {what}"


def _reducer(extension: Extension) -> Callable[[Any], tuple[Any, ...]]:
    """Return how instances of the file's classes are pickled: with the file to load first."""

    def reduce(value: Any) -> tuple[Any, ...]:
        return _new, (extension, type(value).__qualname__), vars(value)

    return reduce


def _new(extension: Extension, name: str) -> Any:
    """Return an instance without its values, which the unpickler adds."""
    cls = getattr(extension.load(), name)
    return cls.__new__(cls)


def _restore_extension(path: str, digest: str) -> Extension:
    extension = Extension(path, digest)
    extension.load()
    return extension


LAYER_NAME = re.compile(r"[A-Za-z][\w-]*")
LAYER_METHODS = ("check", "param_spec", "state", "init_state", "forward", "reference")
LAYER_NUMBERS = (int, float, bool, str, int | None)
LAYER_EXAMPLE = "see examples/my_layer.py"


def load_layers(file: str | Path) -> None:
    """Import a file and register its layers in this process; a second time does nothing.

    Every frozen dataclass of the file that has a `name` and a `kind` is a layer as `Layer` says.

    Raises:
        ConfigError: it cannot be read or imported, or what it defines is no layer.
    """
    module = load_extensions(file)
    layers = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and hasattr(value, "name")
        and hasattr(value, "kind")
    ]
    if not layers:
        raise ConfigError(
            f"{file} defines no layer: no class has a name and a kind; {LAYER_EXAMPLE}"
        )
    for layer in layers:
        try:
            _check_layer(layer)
            register(layer)
        except ConfigError as error:
            raise ConfigError(f"{file}: class {layer.__name__}: {error}") from error


def files_of(layers: Iterable[Layer]) -> tuple[Extension, ...]:
    """Return the files that layers come from; none for those of the package."""
    modules = {type(layer).__module__ for layer in layers}
    return tuple(file for file in loaded() if file.module in modules)


def _check_layer(layer: type[Any]) -> None:
    """Raise a ConfigError that says what a class lacks as a layer."""
    params = getattr(layer, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise ConfigError("a layer is a dataclass(frozen=True, kw_only=True)")
    if not isinstance(layer.name, str) or not LAYER_NAME.fullmatch(layer.name):
        raise ConfigError(
            f"its name is {layer.name!r}; use a letter and then letters, digits, '-' or '_'"
        )
    if layer.kind not in ("mixer", "channel"):
        raise ConfigError(f"its kind is {layer.kind!r}; it is 'mixer' or 'channel'")
    lacking = [method for method in LAYER_METHODS if not callable(getattr(layer, method, None))]
    if lacking:
        raise ConfigError(f"it has no {', '.join(lacking)}; {LAYER_EXAMPLE}")
    types = get_type_hints(layer)
    for field in dataclasses.fields(layer):
        if types[field.name] not in LAYER_NUMBERS or field.default is dataclasses.MISSING:
            raise ConfigError(
                f"{field.name} needs a default and one of the types int, float, bool, str and "
                "int | None"
            )
