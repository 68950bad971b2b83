"""The cache folder: what mlxhog can compute again, and which files in it may be executed.

A library that this process loads runs with its user's rights, so it has to come from that user; so
has the list of the Python files that may be loaded again (`models/mad/extensions.py`):

    folder        of this user, mode 0700 when we make it, never writable by others
    those above   of this user or root, writable by others only where the sticky bit keeps them
                  from renaming what is not theirs (/tmp)
    file          of this user, a regular file, no link, not writable by others

What does not comply is refused, not repaired: who could write there may have. Folders are checked
by the path without links, which `private_directory` returns and which is then used. As nobody
else can rename anything along it, a file that was checked is still the same one when it is loaded.
"""

import errno
import grp
import os
import pwd
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
    """Make a folder for files that are going to be run, unless it is there, and check it.

    Returns:
        Its path without links; use this one.

    Raises:
        EnvironmentLacks: another user could write there, or replace it.
        OSError: it cannot be made.
    """
    folder = directory.resolve()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise _refused(folder, f"belongs to {_user(status.st_uid)}")
    if status.st_mode & _BY_OTHERS:
        raise _refused(folder, f"can be written by others (mode {_mode(status)})")
    for parent in folder.parents:
        status = parent.stat()
        if status.st_uid not in (0, os.geteuid()):
            raise _refused(folder, f"lies in {parent}, which belongs to {_user(status.st_uid)}")
        if _others_can_rename(status):
            raise _refused(
                folder, f"lies in {parent}, which can be written by others (mode {_mode(status)})"
            )
    return folder


def is_kept(file: Path) -> bool:
    """Whether a file is there that may be run.

    Args:
        file: in a folder that `private_directory` returned.

    Raises:
        EnvironmentLacks: it is there, and another user could have made or changed it.
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
        raise _refused(file, "is no regular file")
    if status.st_uid != os.geteuid():
        raise _refused(file, f"belongs to {_user(status.st_uid)}")
    if status.st_mode & _BY_OTHERS:
        raise _refused(file, f"can be written by others (mode {_mode(status)})")
    return True


def _others_can_rename(status: os.stat_result) -> bool:
    """Whether users other than root and this one may replace what is in a folder."""
    if status.st_mode & stat.S_ISVTX:
        return False
    by_group = status.st_mode & stat.S_IWGRP and not _own_group(status.st_gid)
    return bool(by_group or status.st_mode & stat.S_IWOTH)


def _own_group(gid: int) -> bool:
    """Whether a group is this user's alone: many systems make one for each user, of its name."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    own = group.gr_name == user.pw_name and gid == user.pw_gid
    return own and set(group.gr_mem) <= {user.pw_name}


def _refused(path: Path, fault: str) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"{path} is not trusted: it {fault}, and what is there decides which code runs as you; "
        "remove it, or set XDG_CACHE_HOME to a folder of your own"
    )


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
