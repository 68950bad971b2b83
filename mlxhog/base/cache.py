"""The cache folder: files that mlxhog can compute again, and the check before one is executed.

A library that this process loads runs with its user's rights, so it must belong to that user. The
same holds for the list of the Python files that may be loaded again (`config/plugins.py`):

    folder  owned by this user, mode 0700 when we make it, never writable by others
    file    owned by this user, a regular file, not a link, not writable by others

A path that breaks a rule is refused, not repaired: another user may already have changed it.
"""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from mlxhog.base.output import say_once
from mlxhog.errors import EnvironmentLacks

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def user_cache_directory() -> Path:
    """Return this user's cache directory for mlxhog; it need not exist."""
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "mlxhog"
    caches = Path("Library", "Caches") if sys.platform == "darwin" else Path(".cache")
    try:
        home = Path.home()
    except RuntimeError:  # a user id without an entry, as in a container, and HOME is not set
        return _temporary_cache("the system knows no home of this user")
    if os.access(home, os.W_OK) or (home / caches / "mlxhog").exists():
        return home / caches / "mlxhog"
    return _temporary_cache(f"{home}, the home of this user, cannot be written")


def _temporary_cache(why: str) -> Path:
    """Return a private folder for the files of this user below the temporary directory.

    Raises:
        EnvironmentLacks: another user made it, or could write to it.
    """
    folder = Path(tempfile.gettempdir(), f"mlxhog-{os.geteuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    _check(folder, status, "" if stat.S_ISDIR(status.st_mode) else "is not a folder")
    cache = folder / "cache"
    say_once(f"{why}, so the cache is {cache}; set HOME or XDG_CACHE_HOME to keep it elsewhere")
    return cache


def private_directory(directory: Path) -> Path:
    """Create a folder for files that will be executed, unless it exists, and check it.

    Returns:
        Its path without links; use this one.

    Raises:
        EnvironmentLacks: another user could write to the folder.
        OSError: the folder cannot be created.
    """
    folder = directory.resolve()
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    _check(folder, folder.stat())
    return folder


def is_kept(file: Path) -> bool:
    """Whether a file of a `private_directory` exists, and so may be executed.

    Raises:
        EnvironmentLacks: the file exists, and another user could have created or changed it.
    """
    try:
        status = file.lstat()
    except FileNotFoundError:
        return False
    _check(file, status, "" if stat.S_ISREG(status.st_mode) else "is not a regular file")
    return True


def _check(path: Path, status: os.stat_result, fault: str = "") -> None:
    if status.st_uid != os.geteuid():
        fault = f"belongs to another user (uid {status.st_uid})"
    elif status.st_mode & _BY_OTHERS and not fault:
        fault = f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    if fault:
        raise EnvironmentLacks(
            f"{path} is not trusted: it {fault}, and its content decides which code runs as you; "
            "remove it, or set XDG_CACHE_HOME to a folder of your own"
        )
