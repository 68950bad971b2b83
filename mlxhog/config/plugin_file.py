"""A Python file of a user's own: its choices, and its way into other processes.

A file is executed once in a process, and its definitions are registered by their kind:

    a class with a `name` and a `kind` that is text     a layer
    a class with its own `name` whose `kind` is a registry (bases `Choice`, `Task`)
                                                        a schedule, optimizer, strategy, task

Objects of its classes can be sent to other processes: the bytes of the file go with them and are
executed there before the objects are unpickled, so the user may edit the file meanwhile. A `Plugin`
in a pickle has the same effect; a class or a function behind it is found there by its name.
`plugins` decides which files may be executed at all.
"""

from __future__ import annotations

import copyreg
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from mlxhog.config.choices import LAYERS, REGISTRIES, Registry
from mlxhog.errors import ConfigError

_PREFIX = "mlxhog_plugin_"


@dataclass(frozen=True)
class Plugin:
    """A file; unpickling one executes its bytes, unless this process has.

    Attributes:
        path: of the file, absolute.
        digest: SHA-256 of its bytes, in hexadecimal.
    """

    path: str
    digest: str

    @property
    def text(self) -> str:
        """Its form in YAML and JSON."""
        return f"{self.path} sha256:{self.digest}"

    @property
    def module(self) -> str:
        """Name of the module; another file, or the same one changed, is another module."""
        key = hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()
        return f"{_PREFIX}{Path(self.path).stem}_{key[:16]}"

    def __reduce__(self) -> tuple[Callable[..., Plugin], tuple[str, str, bytes]]:
        """Send the bytes that were executed here."""
        return _received, (self.path, self.digest, _sources[self])


_loaded: dict[Plugin, ModuleType] = {}
_sources: dict[Plugin, bytes] = {}
"""The executed bytes, for other processes: the file may change meanwhile."""


def loaded() -> tuple[Plugin, ...]:
    """Return the files that this process has executed, in that order."""
    return tuple(_loaded)


def files_of(things: Iterable[object]) -> tuple[Plugin, ...]:
    """Return the files that define some classes, or the classes of some objects."""
    modules = {getattr(thing, "__module__", None) for thing in things}
    return tuple(plugin for plugin in _loaded if plugin.module in modules)


def read(path: str) -> tuple[Plugin, bytes]:
    """Read a file by its absolute path; executes nothing.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read it: {error.strerror or error}; give a Python file"
        ) from error
    return Plugin(path, hashlib.sha256(source).hexdigest()), source


def execute(plugin: Plugin, source: bytes) -> ModuleType:
    """Return a file's module; a loaded one is not executed again.

    Raises:
        ConfigError: it is not Python, or raises an error, which is given with its line.
    """
    if plugin not in _loaded:
        _loaded[plugin] = _executed(plugin, source)
        _sources[plugin] = source
    return _loaded[plugin]


def _executed(plugin: Plugin, source: bytes) -> ModuleType:
    spec = spec_from_file_location(plugin.module, plugin.path)
    if spec is None:
        raise ConfigError(f"{plugin.path}: not a Python file; give one whose name ends in .py")
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there for their module
    try:
        exec(compile(source, plugin.path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[module.__name__]
        if not isinstance(error, Exception):
            raise
        raise ConfigError(_explained(plugin.path, error)) from error
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            copyreg.pickle(value, _reducer(plugin))
    return module


def _explained(path: str, error: Exception) -> str:
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


# -- on the way to another process -----------------------------------------------------------------


def _reducer(plugin: Plugin) -> Callable[[Any], tuple[Any, ...]]:
    """Return the pickler of the file's classes, which sends the bytes to execute first."""

    def reduce(value: Any) -> tuple[Any, ...]:
        function, arguments, *state = value.__reduce_ex__(4)
        return (_made, (plugin, function, arguments), *state)

    return reduce


def _made(plugin: Plugin, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make an object as its class does; unpickling `plugin` has executed the file before."""
    return function(*arguments)


def _received(path: str, digest: str, source: bytes) -> Plugin:
    """Execute bytes from another process, and register their choices.

    Raises:
        ConfigError: they have another digest, or cannot be executed.
    """
    plugin = Plugin(path, digest)
    if hashlib.sha256(source).hexdigest() != digest:
        raise ConfigError(f"{path} was damaged on the way here: its SHA-256 is not {digest}")
    if plugin not in _loaded:
        execute(plugin, source)
        register(plugin, skips_taken=True)
    return plugin


# -- what a file defines ---------------------------------------------------------------------------


def register(plugin: Plugin, *, skips_taken: bool = False) -> None:
    """Register the choices of an executed file; a second time does nothing.

    Args:
        plugin: the file.
        skips_taken: leave out a choice whose name is taken, in place of refusing it.

    Raises:
        ConfigError: the file has no choice of any kind, or a kind refuses one of them.
    """
    own = [
        (registry, value)
        for value in vars(_loaded[plugin]).values()
        if (registry := _registry_of(value)) and value.__module__ == plugin.module
    ]
    for registry, value in own:
        known = registry.known()  # those of the package have their names first
        if skips_taken and value.name in known:
            continue
        try:
            registry.register(value)
        except ConfigError as error:
            what = f"class {value.__name__}: " if isinstance(value, type) else ""
            raise ConfigError(f"{plugin.path}: {what}{error}") from error
    if not own and not any(registry.defined_in(plugin.module) for registry in REGISTRIES):
        forms = "; ".join(f"{registry.title}: {registry.form}" for registry in REGISTRIES)
        raise ConfigError(f"{plugin.path} adds nothing that can be chosen. It may add: {forms}")


def _registry_of(value: object) -> Registry[Any] | None:
    """Return the registry of a value of a file; None if it is not a choice."""
    if isinstance(value, type):
        kind = getattr(value, "kind", None)
        if isinstance(kind, Registry):
            return kind if "name" in vars(value) else None
        return LAYERS if hasattr(value, "name") and kind is not None else None
    return None
