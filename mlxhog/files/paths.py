"""Paths as users write them."""

import os
from pathlib import Path

from mlxhog.errors import ConfigError, shown


def expanded(path: str | Path) -> Path:
    """Return a path in which `~` or `~NAME` at the start is the home of this user or of another.

    Raises:
        ConfigError: the system knows no such user, or no home of this one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = Path(path).parts[0]
        whose = f"a user {shown(name[1:])}" if name != "~" else "the home of this user"
        raise ConfigError(
            f"{shown(str(path))} begins with {shown(name)}, and the system does not know {whose}; "
            "write the whole path, from / on"
        ) from error


def path_from_here(path: Path) -> Path:
    """A path as it is typed in the current folder: relative where it lies below it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path


def printable(path: str | Path) -> str:
    r"""Return a path for a message: bytes that are not UTF-8 become escapes.

    >>> print(printable("caf\udce9.txt"))
    caf\xe9.txt
    """
    return os.fsencode(path).decode(errors="backslashreplace")
