"""Plugins: Python files of a user that add components, and travel to other processes.

A file is executed once in a process, and its classes are registered: one with a `registry` (bases
`Component`, `Task`) and its own `name` there, one with a `name` and a `kind` as a layer.

Objects of its classes can be sent to other processes: the bytes of the file go with them and are
executed there before the objects are unpickled, so the user may edit the file meanwhile.

Runs, studies, architectures and checkpoints with such a component remember its file by path and
digest (`Plugin.text`) under `KEY`. A command that finds one loads the remembered file (`recalled`)
if it has the remembered digest, and this user has named these bytes to mlxhog on this machine, by a
flag or a Python argument; the cache folder has a file for each digest. So nothing from elsewhere
runs code by naming a file.
"""

from __future__ import annotations

import copyreg
import hashlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mlxhog.base import darwin, reading
from mlxhog.base.cache import is_kept, private_directory, user_cache_directory
from mlxhog.base.output import say_once
from mlxhog.base.paths import expanded
from mlxhog.config.components import LAYERS, REGISTRIES, Registry, UnknownComponent
from mlxhog.errors import ConfigError, EnvironmentLacks, shown

KEY = "plugin"  # key of remembered files in config.yaml, study.yaml, architectures and config.json
PREFIX = "mlxhog_plugin_"

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """A file; unpickling one executes its bytes, unless this process has."""

    path: str  # absolute
    digest: str  # SHA-256 of its bytes, in hexadecimal

    @property
    def text(self) -> str:
        """Text in YAML and JSON."""
        return f"{self.path} sha256:{self.digest}"

    @property
    def module(self) -> str:
        """Name of the module; another file, or the same one changed, is another module."""
        key = hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()
        return f"{PREFIX}{Path(self.path).stem}_{key[:16]}"

    def __reduce__(self) -> tuple[Callable[..., Plugin], tuple[str, str, bytes]]:
        """Send the bytes that were executed here."""
        return _received, (self.path, self.digest, _loaded[self][1])


_loaded: dict[Plugin, tuple[ModuleType, bytes]] = {}
"""The executed files: their modules, and their bytes, since a file may change meanwhile."""


def loaded() -> tuple[Plugin, ...]:
    """Return the files that this process has executed, in that order."""
    return tuple(_loaded)


def files_of(things: Iterable[object]) -> tuple[Plugin, ...]:
    """Return the files that define some classes, or the classes of some objects."""
    modules = {getattr(thing, "__module__", None) for thing in things}
    return tuple(plugin for plugin in _loaded if plugin.module in modules)


def remembered(things: Iterable[object]) -> list[str]:
    """Return the texts that remember the files of some objects; the package's have none."""
    return [plugin.text for plugin in files_of(things)]


def same_files(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists remember the same bytes, at any paths."""
    return {_parsed(text)[1] for text in one} == {_parsed(text)[1] for text in other}


_COMMA = re.compile(r"(?:(?<=\.py)|(?<= sha256:[0-9a-f]{64})),\s*")


def texts(value: object) -> list[str]:
    """Return the texts of a value of `KEY`: one text, several with commas, a list, or nothing.

    A comma divides only behind the end of a text: the name of a folder may have one, too.

    Raises:
        ConfigError: the value has another form.
    """
    if value in (None, ""):
        return []
    if isinstance(value, os.PathLike):
        return [os.fspath(value)]
    if isinstance(value, str):
        return [word for word in _COMMA.split(value.strip()) if word]
    if isinstance(value, list | tuple) and all(isinstance(one, str | os.PathLike) for one in value):
        return [os.fspath(one) for one in value]
    raise ConfigError(
        f"{KEY} is {shown(value)}; write the path of a Python file, or a list of them"
    )


def _parsed(text: str) -> tuple[str, str | None]:
    """Return path and digest of a remembered file; without a digest its bytes are not pinned."""
    path, _, digest = text.partition(" sha256:")
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(
            f"{KEY} has {shown(text)}, whose digest is not a SHA-256; name the file alone"
        )
    return str(expanded(path).absolute()), digest or None


# -- files that the user names, and files that something remembers ---------------------------------


def load(path: str | Path) -> ModuleType:
    """Execute a file that the user names, note that it was named, and register its components.

    A loaded file is not executed again. Components of an edited file, or of a copy of a file,
    replace those loaded before. `path` may be its text in a configuration.

    Raises:
        ConfigError: the file cannot be read, has another digest than the text, is not Python,
            raises an error (given with its line), or adds nothing.
    """
    plugin, source = _read(str(path))
    module = _execute(plugin, source)
    with suppress(OSError, EnvironmentLacks):  # then commands ask for it again
        (private_directory(_named_files()) / plugin.digest).touch(0o600)
    _register(plugin)
    return module


def load_all(value: object) -> None:
    """Execute the files of a value of `KEY`, as `texts` divides it; ConfigError as `load`."""
    for file in texts(value):
        load(file)


def _read(text: str) -> tuple[Plugin, bytes]:
    """Read a remembered file, or one without a digest."""
    path, digest = _parsed(text)
    try:
        source = reading.read_bytes(Path(path), reading.MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        reason = darwin.reason(error) if isinstance(error, OSError) else error
        raise ConfigError(
            f"{path}: cannot read it: {reason}; give its place: --plugin FILE"
        ) from error
    plugin = Plugin(path, hashlib.sha256(source).hexdigest())
    if digest not in (None, plugin.digest):
        raise ConfigError(
            f"{path} has changed since it was remembered; restore it, or take it as it is now: "
            f"--plugin {shlex.quote(path)}"
        )
    return plugin, source


def _named_files() -> Path:
    return user_cache_directory() / "named-files"


def recalled(
    files: Sequence[str], read: Callable[[], T], components: Callable[[T], Iterable[object]]
) -> T:
    """Call `read`; after an `UnknownComponent` load the remembered files and call it again.

    `files` are the texts of `remembered`, or paths alone; `components` are those of a result.

    Raises:
        ConfigError: as of `read`; or a remembered file is gone, has changed, or was never named by
            this user.
    """
    try:
        result = read()
    except ConfigError as error:
        unknown: BaseException | None = error
        while unknown is not None and not isinstance(unknown, UnknownComponent):
            unknown = unknown.__cause__
        if unknown is None or not files:
            raise
        try:
            for file in files:
                _recall(file)
        except ConfigError as reason:
            raise ConfigError(f"{str(unknown).partition(';')[0]}: {reason}") from error
        result = read()
    digests, used = {_parsed(text)[1] for text in files}, files_of(components(result))
    if None not in digests and not digests <= {file.digest for file in used}:
        for one in used:
            if one.digest not in digests:
                say_once(f"plugin {one.path} is not the version that was remembered")
    return result


def _recall(text: str) -> None:
    """Load a remembered file and report it, or raise a ConfigError with the way out."""
    plugin, source = _read(text)
    folder = _named_files()
    if not (folder.is_dir() and is_kept(private_directory(folder) / plugin.digest)):
        raise ConfigError(
            f"{plugin.path} is remembered for it, and you have never named that file, as it is "
            "now, to mlxhog on this machine; read it and, if you trust it, name it: --plugin "
            f"{shlex.quote(plugin.path)}"
        )
    say_once(f"plugin {plugin.path}")
    _execute(plugin, source)
    _register(plugin, skips_taken=True)


# -- execution, here and in other processes --------------------------------------------------------


def _execute(plugin: Plugin, source: bytes) -> ModuleType:
    """Return a file's module; a loaded one is not executed again."""
    if plugin in _loaded:
        return _loaded[plugin][0]
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
        line = getattr(error, "lineno", None)  # of a SyntaxError
        for frame in traceback.extract_tb(error.__traceback__):
            line = frame.lineno if frame.filename == plugin.path else line
        where = plugin.path if line is None else f"{plugin.path}, line {line}"
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: {kind}{getattr(error, 'msg', error)}") from error
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            copyreg.pickle(value, partial(_reduced, plugin))
    _loaded[plugin] = (module, source)
    return module


def _reduced(plugin: Plugin, value: Any) -> tuple[Any, ...]:
    """Pickle an object of a file's class so that the file is executed before it is made."""
    function, arguments, *state = value.__reduce_ex__(4)
    return (_made, (plugin, function, arguments), *state)


def _made(plugin: Plugin, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make an object as its class does; unpickling `plugin` has executed the file before."""
    return function(*arguments)


def _received(path: str, digest: str, source: bytes) -> Plugin:
    """Execute bytes from another process, and register their components."""
    plugin = Plugin(path, digest)
    if plugin not in _loaded:
        _execute(plugin, source)
        _register(plugin, skips_taken=True)
    return plugin


def _register(plugin: Plugin, *, skips_taken: bool = False) -> None:
    """Register the components of an executed file, which has one at least; again does nothing.

    With `skips_taken` a component whose name is taken is left out, not refused; else those of other
    versions and copies of the file are forgotten.
    """
    own = [
        (registry, value)
        for value in vars(_loaded[plugin][0]).values()
        if (registry := _registry_of(value)) and value.__module__ == plugin.module
    ]
    if not own:
        forms = "; ".join(f"{registry.title}: {registry.form}" for registry in REGISTRIES)
        raise ConfigError(f"{plugin.path} adds nothing that can be chosen. It may add: {forms}")
    others = {
        one.module
        for one in _loaded
        if one != plugin and (one.path == plugin.path or one.digest == plugin.digest)
    }
    for registry in REGISTRIES:
        registry.forget([] if skips_taken else others)
    for registry, value in own:
        known = registry.known()  # those of the package have their names first
        try:
            if not (skips_taken and value.name in known):
                registry.register(value)
        except ConfigError as error:
            raise ConfigError(f"{plugin.path}: class {value.__name__}: {error}") from error


def _registry_of(value: object) -> Registry[Any] | None:
    """Return the registry of a value of a file; None if it is not a component."""
    if not isinstance(value, type):
        return None
    if isinstance(registry := getattr(value, "registry", None), Registry):
        return registry if "name" in vars(value) else None
    return LAYERS if hasattr(value, "name") and hasattr(value, "kind") else None
