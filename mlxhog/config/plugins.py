"""Plugins: Python files of a user that add choices, which may run them, and what remembers them.

Runs, studies, architectures and checkpoints with a choice of the user's own remember its file by
path and digest, one text for each (`Plugin.text`): the config.yaml of a run as `plugin`;
study.yaml, a written architecture and the config.json of a checkpoint as `KEY`. A command that
reads one of these and finds a choice that is not registered loads the remembered file (`recalled`).
Two conditions keep a study or a checkpoint from elsewhere from running code by naming a file:

    the file has the remembered digest
    this user has named this file with these bytes to mlxhog, by a flag or a Python argument

`_note` keeps a list of the named files in the user's cache folder. A file that the user names in
this process comes first: a remembered version of it is then not loaded.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from mlxhog.base import reading
from mlxhog.base.cache import is_kept, private_directory, user_cache_directory
from mlxhog.base.paths import expanded
from mlxhog.config import plugin_file
from mlxhog.config.choices import UnknownChoice
from mlxhog.config.plugin_file import Plugin, files_of
from mlxhog.errors import ConfigError, EnvironmentLacks, shown

FLAG = "--plugin"
KEY = "plugin"
"""Key of remembered files in study.yaml, architectures and config.json."""

T = TypeVar("T")
_named: set[Plugin] = set()  # by the user, in this process


def load(path: str | Path) -> ModuleType:
    """Execute a file that the user names, note that it was named, and register its choices.

    A loaded file is not executed again.

    Raises:
        ConfigError: the file cannot be read, is not Python, raises an error (given with its line),
            or adds nothing.
    """
    plugin, source = plugin_file.read(str(expanded(path).absolute()))
    module = plugin_file.execute(plugin, source)
    _named.add(plugin)
    _note(plugin)
    plugin_file.register(plugin)
    return module


def load_named(files: object) -> None:
    """Load what a program gives as `plugin`: a path, or several with commas; see `texts`.

    Raises:
        ConfigError: as `load`; or the file has another digest than it is given with.
    """
    for text in texts(files):
        path, digest = _parsed(text)
        if digest is not None and plugin_file.read(path)[0].digest != digest:
            raise ConfigError(f"{path} has changed since it was remembered; give its path alone")
        load(path)


def remembered(things: Iterable[object]) -> list[str]:
    """Return the texts that remember the files of some objects; the package's have none."""
    return [plugin.text for plugin in files_of(things)]


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
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return list(value)
    raise ConfigError(
        f"{KEY} is {shown(value)}; write the path of a Python file, or a list of them"
    )


def recalled(
    files: Sequence[str], read: Callable[[], T], chosen: Callable[[T], Iterable[object]]
) -> T:
    """Call `read`; after an unknown choice load the remembered files and call it again.

    Args:
        files: the texts of `remembered`, or paths alone.
        read: makes a result from names of choices.
        chosen: returns the choices in the result.

    Raises:
        ConfigError: as of `read`; or a remembered file is gone, has changed, or was never named by
            this user; or this process has loaded another version of it.
    """
    try:
        result = read()
    except ConfigError as error:
        unknown = _unknown_choice(error)
        if unknown is None or not files:
            raise
        for file in files:
            try:
                _recall(file)
            except ConfigError as reason:
                raise ConfigError(
                    f"{unknown.title} {unknown.name!r} is not known: {reason}"
                ) from error
        result = read()
    _check_versions(files, files_of(chosen(result)))
    return result


def _unknown_choice(error: BaseException | None) -> UnknownChoice | None:
    """Return the unknown choice that an error, or a cause of it, is about."""
    while error is not None and not isinstance(error, UnknownChoice):
        error = error.__cause__
    return error


def _recall(text: str) -> None:
    """Load a remembered file, and report it.

    Raises:
        ConfigError: it may not or cannot be loaded; the message has the reason and the way out.
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
        raise ConfigError(f"{path} is gone; give its new place: {FLAG} FILE")
    plugin, source = plugin_file.read(path)
    if digest not in (None, plugin.digest):
        raise ConfigError(
            f"{path} has changed since it was remembered; restore it, or take it as it is now: "
            f"{name_it}"
        )
    if plugin.digest not in named:
        raise ConfigError(f"{path} has changed since you named it to mlxhog; name it: {name_it}")
    _tell(f"plugin {path}")
    plugin_file.execute(plugin, source)
    plugin_file.register(plugin, skips_taken=True)


def _parsed(text: str) -> tuple[str, str | None]:
    """Return path and digest of a remembered file; without a digest its bytes are not pinned."""
    path, _, digest = text.partition(" sha256:")
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(
            f"{KEY} has {shown(text)}, whose digest is not a SHA-256; name the file alone"
        )
    return str(expanded(path).absolute()), digest or None


def _check_versions(files: Sequence[str], used: Iterable[Plugin]) -> None:
    """Report that another version of a file is used than the remembered one, or refuse it.

    Raises:
        ConfigError: the user has not named that version, so it is here by chance.
    """
    digests = {digest for _, digest in map(_parsed, files)}
    used = tuple(used)
    if None in digests or digests <= {file.digest for file in used}:
        return
    for file in used:
        if file.digest in digests:
            continue
        if file not in _named:
            raise ConfigError(
                f"this process has loaded {file.path}, and another version of it is remembered; "
                "start a new process"
            )
        _tell(f"plugin {file.path} is not the version that was remembered")


_said: set[str] = set()


def _tell(line: str) -> None:
    """Print a line on stderr, once in a process."""
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)


def same_files(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists remember the same bytes, at any paths."""
    return {_parsed(text)[1] for text in one} == {_parsed(text)[1] for text in other}


def _notes() -> Path:
    return user_cache_directory() / "named-files" / "list.jsonl"


def _note(plugin: Plugin) -> None:
    """Note that the user has named a file; if that cannot be written, commands ask for it again."""
    with suppress(OSError, EnvironmentLacks):
        if plugin.digest in _noted(plugin.path):
            return
        private_directory(_notes().parent)
        descriptor = os.open(_notes(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"{json.dumps([plugin.path, plugin.digest])}\n".encode())


def _noted(path: str) -> set[str]:
    """Return the digests with which the user has named a file; empty if never.

    Raises:
        EnvironmentLacks: another user could have written the notes.
    """
    if not _notes().parent.is_dir():
        return set()
    notes = private_directory(_notes().parent) / _notes().name
    lines = reading.read_text(notes).splitlines() if is_kept(notes) else []
    return {digest for name, digest in map(json.loads, lines) if name == path}
