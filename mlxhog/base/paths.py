"""Paths in the notation of users and shells."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from mlxhog.errors import ConfigError, shown


def expanded(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~NAME` replaced by that user's home.

    Raises:
        ConfigError: the system does not know that user, or has no home for this user; or it is no
            path.
    """
    try:
        return Path(path).expanduser()
    except TypeError as error:
        raise ConfigError(f"{shown(path)} is no path; give a text or a pathlib.Path") from error
    except RuntimeError as error:
        name = Path(path).parts[0]
        unknown = f"a user {shown(name[1:])}" if name != "~" else "the home of this user"
        raise ConfigError(
            f"{shown(str(path))} begins with {shown(name)}, and the system does not know "
            f"{unknown}; write the whole path, from / on"
        ) from error


def read_path(text: str) -> Path:
    """Read the path of an option as `expanded`; a ValueError for "", the current folder's."""
    if not text:
        raise ValueError("wanted a path; the current folder is .")
    return expanded(text)


def path_from_here(path: Path) -> Path:
    """Return a path relative to the current folder if it is below it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path


def printable(path: str | Path) -> str:
    r"""Return a path for a message, with escapes for bytes that are not UTF-8.

    >>> print(printable("caf\udce9.txt"))
    caf\xe9.txt
    """
    return os.fsencode(path).decode(errors="backslashreplace")


def quoted(path: str | Path) -> str:
    r"""Return a path quoted for a shell, printable or not.

    >>> quoted("my notes/a.txt")
    "'my notes/a.txt'"
    >>> quoted("a\udcff.txt")
    "$'a\\xff.txt'"

    zsh takes a word that begins with = for the path of a program:

    >>> quoted("==Title==")
    "'==Title=='"
    """
    text = str(path)
    if text.isprintable():
        word = shlex.quote(text)
        return f"'{word}'" if word[:1] == "=" else word
    escaped = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(escaped)}'"


def quoted_paths(data: object) -> str:
    """Return the paths of an option `data`, or of its list in YAML, quoted for a shell."""
    return " ".join(map(quoted, data if isinstance(data, list) else str(data).split("\n")))


def names_in_common_folder(paths: Iterable[str]) -> dict[str, str]:
    """Return each absolute path relative to their common folder; other paths stay.

    >>> names_in_common_folder(["/a/b/README.md", "/a/c/README.md", "sotu"])
    {'/a/b/README.md': 'b/README.md', '/a/c/README.md': 'c/README.md', 'sotu': 'sotu'}
    """
    paths = list(paths)
    full = [one for one in paths if os.path.isabs(one)]
    folder = os.path.commonpath(map(os.path.dirname, full)) if full else ""
    return {one: os.path.relpath(one, folder) if os.path.isabs(one) else one for one in paths}
