"""Paths as users write them."""

import os
from pathlib import Path

from mlxhog.errors import ConfigError, shown


def expanded(path: str | Path) -> Path:
    """Return a path in which `~` or `~NAME` at the start is the home of this user or of another.

    Raises:
        ConfigError: the system does not know that user, or has no home for this user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = Path(path).parts[0]
        unknown = f"a user {shown(name[1:])}" if name != "~" else "the home of this user"
        raise ConfigError(
            f"{shown(str(path))} begins with {shown(name)}, and the system does not know "
            f"{unknown}; write the whole path, from / on"
        ) from error


def path_from_here(path: Path) -> Path:
    """A path as a user types it here: relative if it lies below the current folder."""
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
