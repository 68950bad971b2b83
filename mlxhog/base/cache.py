"""The cache folder, and the checks before one of its files is used.

A library that this process loads runs with its user's rights, so it must belong to that user. So
must the list of trusted Python files (`config/plugins.py`), the capability record, and stored
tokens, which decide what a model learns:

    folder  owned by this user, created with mode 0700, never writable by others
    file    owned by this user, a regular file, not a link, not writable by others

A path that breaks a rule is refused or created anew, not repaired: another user may already have
changed it. Only the cache folder itself is closed to others (`own_directory`).
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
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


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
    """Return a private folder of this user below the temporary directory."""
    folder = Path(tempfile.gettempdir(), f"mlxhog-{os.geteuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    _check(folder, status, "" if stat.S_ISDIR(status.st_mode) else "is not a folder")
    cache = folder / "cache"
    say_once(f"{why}, so the cache is {cache}; set HOME or XDG_CACHE_HOME to keep it elsewhere")
    return cache


def own_directory(directory: Path) -> Path:
    """Create the cache folder, unless it exists, and close it to others.

    Returns:
        Its path without links; use this one.

    Raises:
        EnvironmentLacks: it belongs to another user.
        OSError: the folder cannot be created.
    """
    folder = _created(directory)
    status = folder.stat()
    if status.st_uid == os.geteuid() and status.st_mode & _OF_OTHERS:
        with suppress(OSError):  # a disk may keep no modes: then what is stored is not used
            folder.chmod(stat.S_IMODE(status.st_mode) & ~_OF_OTHERS)
        return folder
    _check(folder, status)
    return folder


def is_own(folder: Path) -> bool:
    """Whether no other user can have written a folder of files; True if it is missing."""
    with suppress(FileNotFoundError):
        every = [(folder, stat.S_ISDIR), *((path, stat.S_ISREG) for path in folder.iterdir())]
        for path, is_kind in every:
            if _fault(status := path.lstat()) or not is_kind(status.st_mode):
                return False
    return True


def restrict(folder: Path) -> None:
    """Close a folder of files of this user to others."""
    for path in (folder, *folder.iterdir()):
        if (mode := stat.S_IMODE(path.lstat().st_mode)) & _OF_OTHERS:
            path.chmod(mode & ~_OF_OTHERS)


def private_directory(directory: Path) -> Path:
    """Create a folder for files that will be executed, unless it exists, and check it.

    Returns:
        Its path without links; use this one.

    Raises:
        EnvironmentLacks: another user could write to the folder.
        OSError: the folder cannot be created.
    """
    folder = _created(directory)
    _check(folder, folder.stat())
    return folder


def _created(directory: Path) -> Path:
    folder = directory.resolve()
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    return folder


def is_kept(file: Path) -> bool:
    """Whether a file of the cache exists and may be used.

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
    if fault := _fault(status, fault):
        raise EnvironmentLacks(
            f"{path} is not trusted: it {fault}, and its content decides which code runs as you "
            "and what models learn; remove it, or set XDG_CACHE_HOME to a folder of your own"
        )


def _fault(status: os.stat_result, fault: str = "") -> str:
    if status.st_uid != os.geteuid():
        return f"belongs to another user (uid {status.st_uid})"
    if status.st_mode & _BY_OTHERS and not fault:
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return fault
