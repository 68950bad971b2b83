"""The cache folder: files that mlxhog can compute again, and the check before one is executed.

A library that this process loads runs with its user's rights, so it must belong to that user. The
same holds for the list of the Python files that may be loaded again (`config/plugins.py`):

    folder  owned by this user, mode 0700 when we make it, never writable by others
    file    owned by this user, a regular file, not a link, not writable by others

A path that breaks a rule is refused, not repaired: another user may already have changed it.
"""

import errno
import os
import stat
import sys
from pathlib import Path

from mlxhog.errors import EnvironmentLacks

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def user_cache_directory() -> Path:
    """Return this user's cache directory for mlxhog; it need not exist."""
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "mlxhog"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlxhog"
    return Path.home() / ".cache" / "mlxhog"


def private_directory(directory: Path) -> Path:
    """Create a folder for files that will be executed, unless it exists, and check it.

    Returns:
        Its path without links; use this one.

    Raises:
        EnvironmentLacks: another user could write to the folder.
        OSError: the folder cannot be created.
    """
    folder = directory.resolve()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    _check_owner(folder, folder.stat())
    return folder


def is_kept(file: Path) -> bool:
    """Whether a file exists; a file that exists has passed the checks and may be executed.

    Args:
        file: in a folder that `private_directory` returned.

    Raises:
        EnvironmentLacks: the file exists, and another user could have created or changed it.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        fault = "is a link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise _refused(file, fault) from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _refused(file, "is not a regular file")
    _check_owner(file, status)
    return True


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise _refused(path, f"belongs to another user (uid {status.st_uid})")
    if status.st_mode & _BY_OTHERS:
        raise _refused(path, f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})")


def _refused(path: Path, fault: str) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"{path} is not trusted: it {fault}, and its content decides which code runs as you; "
        "remove it, or set XDG_CACHE_HOME to a folder of your own"
    )
