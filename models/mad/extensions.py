"""Python files of a user that add layers or tasks: loaded, sent to workers, and remembered.

A file is executed once in a process. It registers what it defines, as the package's own modules
do. Instances of its classes can be sent to other processes: the bytes of the file travel with them
and are executed there before they are unpickled, so the user may edit the file meanwhile. An
`Extension` in a configuration has the same effect.

What is made of such layers remembers their files by path and digest, one text for each
(`Extension.text`), under the name `layers_from`: study.yaml, a written architecture, the
config.json of a checkpoint, the config.yaml of a run. Whoever reads one of these and meets a layer
that is not registered loads the remembered file. Two conditions keep a study or a checkpoint that
comes from elsewhere from running code by naming a file:

    the file has the digest that is remembered
    this user has named this file with these bytes to mlxhog, by a flag or a Python argument

`_note` keeps a list of the files that were named, in the user's cache folder. A file that the user
names in this process comes first: a remembered version of it is then not loaded.
"""

from __future__ import annotations

import copyreg
import dataclasses
import hashlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from mlxhog.errors import ConfigError, EnvironmentLacks, shown
from mlxhog.files import reading
from mlxhog.files.cache import is_kept, private_directory, user_cache_directory
from mlxhog.files.paths import expanded
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import UnknownLayer, known, register

FLAG = "--layers-from"
KEY = "layers_from"
"""What remembers files, in YAML and JSON."""

T = TypeVar("T")
_PREFIX = "mlxhog_extension_"


@dataclass(frozen=True)
class Extension:
    """A file that was loaded; unpickling it loads its bytes, unless this process has them.

    Attributes:
        path: of the file, absolute.
        digest: SHA-256 of its bytes, in hexadecimal.
    """

    path: str
    digest: str

    @property
    def text(self) -> str:
        """How YAML and JSON remember it; `_parsed` reads it."""
        return f"{self.path} sha256:{self.digest}"

    @property
    def module(self) -> str:
        """Name of the module; another file, or the same one changed, is another module."""
        return f"{_PREFIX}{Path(self.path).stem}_{self.digest[:16]}"

    def load(self) -> ModuleType:
        """Return the file's module; only where this process has not loaded it, the file is read.

        Raises:
            ConfigError: the file is gone, has other bytes, or cannot be executed.
        """
        if self not in _loaded:
            extension, source = _read(self.path)
            if extension != self:
                raise ConfigError(
                    f"{self.path} has changed; restore it, or begin again with the new file"
                )
            _load(self, source)
        return _loaded[self]

    def __reduce__(self) -> tuple[Callable[..., Extension], tuple[str, str, bytes]]:
        """Load the bytes that were loaded here where this is unpickled."""
        self.load()
        return _restore_extension, (self.path, self.digest, _sources[self])


_loaded: dict[Extension, ModuleType] = {}
_sources: dict[Extension, bytes] = {}
"""The bytes of those, for other processes: the file may have others by then."""
_named: set[Extension] = set()  # by the user, in this process


def loaded() -> tuple[Extension, ...]:
    """Return the files that this process has loaded, in that order."""
    return tuple(_loaded)


def load_extensions(path: str | Path) -> ModuleType:
    """Execute a file that the user names, note that it was named, and return its module.

    One that is loaded already is not executed again.

    Raises:
        ConfigError: the file cannot be read, is no Python, or raises an error: which, and in which
            line.
    """
    extension, source = _read(str(expanded(path).absolute()))
    module = _load(extension, source)
    _named.add(extension)
    _note(extension)
    return module


def _read(path: str) -> tuple[Extension, bytes]:
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read it: {error.strerror or error}; give a Python file"
        ) from error
    return Extension(path, hashlib.sha256(source).hexdigest()), source


def _load(extension: Extension, source: bytes) -> ModuleType:
    if extension not in _loaded:
        _loaded[extension] = _execute(extension, source)
        _sources[extension] = source
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
    """Return how instances of the file's classes are pickled: with the bytes to load first."""

    def reduce(value: Any) -> tuple[Any, ...]:
        return _new, (extension, type(value).__qualname__), vars(value)

    return reduce


def _new(extension: Extension, name: str) -> Any:
    """Return an instance without its values, which the unpickler adds."""
    cls = getattr(extension.load(), name)
    return cls.__new__(cls)


def _restore_extension(path: str, digest: str, source: bytes) -> Extension:
    """Load the bytes that came with a pickled extension.

    Raises:
        ConfigError: they have another digest, or cannot be executed.
    """
    extension = Extension(path, digest)
    if hashlib.sha256(source).hexdigest() != digest:
        raise ConfigError(f"{path}: what arrived of it is damaged: its SHA-256 is not {digest}")
    _load(extension, source)
    return extension


LAYER_NAME = re.compile(r"[A-Za-z][\w-]*")
LAYER_METHODS = ("check", "param_spec", "state", "init_state", "forward", "reference")
LAYER_NUMBERS = (int, float, bool, str, int | None)
LAYER_EXAMPLE = "see examples/my_layer.py"


def load_layers(file: str | Path) -> None:
    """Load a file that the user names, and register its layers in this process.

    Every frozen dataclass of the file that has a `name` and a `kind` is a layer as `Layer` says. A
    second time does nothing.

    Raises:
        ConfigError: it cannot be read or imported, or what it defines is no layer.
    """
    _register(load_extensions(file), str(file))


def load_named(files: object) -> None:
    """Load what a program gives as `layers_from`: a path, or several with commas; see `texts`.

    Raises:
        ConfigError: as `load_layers`; or the file has another digest than it is given with.
    """
    for text in texts(files):
        path, digest = _parsed(text)
        if digest is not None and _read(path)[0].digest != digest:
            raise ConfigError(f"{path} has changed since it was remembered; give its path alone")
        load_layers(path)


def _register(module: ModuleType, file: str, *, replaces: bool = True) -> None:
    """Register the layers of a file; `replaces` refuses a name that is taken, else passes it over.

    Raises:
        ConfigError: it has no layer, or a class is no layer.
    """
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
            if replaces or layer.name not in known():
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


# -- remembered files ------------------------------------------------------------------------------


def remembered(layers: Iterable[Layer]) -> list[str]:
    """Return the texts that remember the files of some layers; none for those of the package."""
    return [file.text for file in files_of(layers)]


_COMMA = re.compile(r"(?:(?<=\.py)|(?<= sha256:[0-9a-f]{64})),\s*")


def texts(value: object) -> list[str]:
    """Return what stands under `KEY`: one text, several in one by commas, a list, or nothing.

    A comma divides only behind the end of a text: the name of a folder may have one, too.

    Raises:
        ConfigError: it is nothing of these.
    """
    if value in (None, ""):
        return []
    if isinstance(value, os.PathLike):
        return [os.fspath(value)]
    if isinstance(value, str):
        return [word for word in _COMMA.split(value.strip()) if word]
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return list(value)
    raise ConfigError(
        f"{KEY} is {shown(value)}; write the path of a Python file, or a list of them"
    )


def recalled(
    files: Sequence[str], read: Callable[[], T], layers: Callable[[T], Iterable[Layer]]
) -> T:
    """Call `read`, and again with the remembered files loaded where it meets an unknown layer.

    Args:
        files: what `remembered` returned, or paths alone.
        read: makes something of layers by their names.
        layers: returns those of what `read` returns.

    Raises:
        ConfigError: what `read` raises; or a remembered file is gone, has changed, or was never
            named by this user; or this process has loaded another version of it.
    """
    try:
        result = read()
    except ConfigError as error:
        unknown = _unknown_layer(error)
        if unknown is None or not files:
            raise
        for file in files:
            try:
                _recall(file)
            except ConfigError as reason:
                raise ConfigError(f"layer {unknown!r} is not known: {reason}") from error
        result = read()
    _check_versions(files, files_of(layers(result)))
    return result


def _unknown_layer(error: BaseException) -> str | None:
    """Return the name of the layer that an error is about, which may be raised from another."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnknownLayer):
            return cause.name
        cause = cause.__cause__
    return None


def _recall(text: str) -> None:
    """Load a remembered file, and say so.

    Raises:
        ConfigError: it may not or cannot be loaded; says why, and what to do.
    """
    path, digest = _parsed(text)
    name_it = f"{FLAG} {shlex.quote(path)}"
    named = _noted(path)
    if not named:  # before the file is touched
        raise ConfigError(
            f"{path} is remembered for it, and you have never named that file to mlxhog on this "
            f"machine; read it and, if you trust it, name it: {name_it}"
        )
    if not Path(path).is_file():
        raise ConfigError(f"{path} is gone; say where it is now: {FLAG} FILE")
    extension, source = _read(path)
    if digest not in (None, extension.digest):
        raise ConfigError(
            f"{path} has changed since it was remembered; restore it, or take it as it is now: "
            f"{name_it}"
        )
    if extension.digest not in named:
        raise ConfigError(f"{path} has changed since you named it to mlxhog; name it: {name_it}")
    _tell(f"layers from {path}")
    _register(_load(extension, source), path, replaces=False)


def _parsed(text: str) -> tuple[str, str | None]:
    """Return path and digest of a remembered file; without a digest its bytes are not pinned."""
    path, _, digest = text.partition(" sha256:")
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(
            f"{KEY} has {shown(text)}, whose digest is no SHA-256; name the file alone"
        )
    return str(expanded(path).absolute()), digest or None


def _check_versions(files: Sequence[str], used: Iterable[Extension]) -> None:
    """Say that another version of a file is used than the remembered one, or refuse it.

    Raises:
        ConfigError: the user has not named that version, so it is here by chance.
    """
    digests = {digest for _, digest in map(_parsed, files)}
    if not digests or None in digests:
        return
    for file in used:
        if file.digest in digests:
            continue
        if file not in _named:
            raise ConfigError(
                f"this process has loaded {file.path}, and another version of it is remembered; "
                "start a new process"
            )
        _tell(f"layers from {file.path}, which is not the version that was remembered")


_said: set[str] = set()


def _tell(line: str) -> None:
    """Say a line on stderr, once in a process."""
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)


def same_files(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists remember the same bytes, wherever the files lie."""
    return {_parsed(text)[1] for text in one} == {_parsed(text)[1] for text in other}


_NOTES = "named-files"


def _note_path(folder: Path, path: str) -> Path:
    return folder / hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()


def _note(extension: Extension) -> None:
    """Keep in the cache folder that the user has named a file.

    Where that cannot be written, later commands ask for the file again.
    """
    with suppress(OSError, EnvironmentLacks):
        note = _note_path(private_directory(user_cache_directory() / _NOTES), extension.path)
        if extension.digest not in _noted(extension.path):
            line = f"{extension.digest} {extension.path!r}\n".encode()
            descriptor = os.open(note, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)


def _noted(path: str) -> set[str]:
    """Return the digests with which the user has named a file; empty if never.

    Raises:
        EnvironmentLacks: another user could have written the note.
    """
    if not (user_cache_directory() / _NOTES).is_dir():
        return set()
    note = _note_path(private_directory(user_cache_directory() / _NOTES), path)
    if not is_kept(note):
        return set()
    return {line.partition(" ")[0] for line in reading.read_text(note).splitlines()}
