"""Capabilities of a folder's file system, and stand-ins for files that it cannot hold.

Memory sticks (exFAT, FAT), network disks (NFS, SMB, Lustre) and FUSE lack file locks, flushing of
folders, shared mappings, Unix sockets or links, each with errors of its own. So an operation is
tried. If it is refused, `disk_of` tries it on a file of its own: if that fails, too, the disk lacks
it, and the caller falls back. Other refusals, as of a full or failing disk, stay errors.

A lock or a socket that the disk cannot hold goes to `stand_in`, on the local disk.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlxhog.errors import EnvironmentLacks

SOCKET_PATH_BYTES = 103  # macOS: 104 with the zero byte; Linux has 108

_NO_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)
"""Errors of a file system that cannot flush a file; others are of a failing disk."""

_INSTEAD = {
    "locks": "file locks (other users and machines notice a process by its heartbeat)",
    "folder_fsync": "flushing of folders (a power failure may lose the newest files)",
    "shared_maps": "shared mappings (files may be read into memory as a whole)",
    "sockets": "Unix sockets (a run's socket is in TMPDIR)",
    "links": "links (a run has none named model)",
}


@dataclass(frozen=True)
class Disk:
    """Capabilities of the file system of one folder."""

    locks: bool  # flock
    folder_fsync: bool
    shared_maps: bool
    sockets: bool
    links: bool


def flush(descriptor: int) -> bool:
    """Flush the written bytes of a file or a folder to the disk; False if it cannot.

    macOS's fsync leaves them in the drive's cache. F_FULLFSYNC flushes that cache, too; some file
    systems support only fsync, or neither.
    """
    if full := getattr(fcntl, "F_FULLFSYNC", None):
        try:
            fcntl.fcntl(descriptor, full)
            return True
        except OSError as error:
            if error.errno not in _NO_FLUSH:
                raise
    try:
        os.fsync(descriptor)
        return True
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
        return False


def disk_of(folder: Path) -> Disk:
    """Return the capabilities of a folder's disk, tested once per process and folder.

    Raises:
        OSError: no file can be written there, so nothing can be said.
    """
    return _ask(os.path.realpath(folder))


FILES_ALONE = ("locks", "folder_fsync", "shared_maps")  # needs of a folder without runs


def note(folder: Path, needs: Sequence[str] = tuple(_INSTEAD)) -> str:
    """Return a sentence for the user about capabilities that a folder's disk lacks, or ""."""
    try:
        disk = disk_of(folder)
    except OSError:  # writing there says why
        return ""
    lacks = [_INSTEAD[name] for name in needs if not getattr(disk, name)]
    return f"the disk of {folder} has no {', no '.join(lacks)}" if lacks else ""


@cache
def _ask(folder: str) -> Disk:
    with tempfile.TemporaryDirectory(
        prefix=".disk-", dir=folder, ignore_cleanup_errors=True
    ) as inside:
        place = Path(inside)
        with (place / "file").open("w+b") as file:
            file.write(b"x")
            file.flush()
            flush(file.fileno())  # else it is not the disk's kind, but the disk that fails
            return Disk(
                locks=_works(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
                folder_fsync=_works(lambda: _flushes(place)),
                shared_maps=_works(lambda: mmap.mmap(file.fileno(), 1).close()),
                sockets=_works(lambda: _bind(place / "s")),
                links=_works(lambda: (place / "link").symlink_to("file")),
            )


def _works(operation: Callable[[], object]) -> bool:
    try:
        return operation() is not False
    except OSError:
        return False


def _flushes(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return flush(descriptor)
    finally:
        os.close(descriptor)


def _bind(path: Path) -> None:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        return  # no socket of this folder will be inside
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.fspath(path))


def stand_in(path: Path, *, make: bool = True) -> Path:
    """Return the path of the stand-in for a file that its disk cannot hold.

    It is in a private folder of this user in TMPDIR, the same for all processes with that TMPDIR.
    `make` creates the folder, unless it exists.

    Raises:
        EnvironmentLacks: the folder cannot be made, or is not this user's alone.
    """
    private = Path(tempfile.gettempdir()) / f"mlxhog-{os.getuid()}"
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    try:
        if make:
            private.mkdir(mode=0o700, exist_ok=True)
        status = private.lstat()
    except FileNotFoundError:
        return private / name
    except OSError as error:
        raise EnvironmentLacks(
            f"{private} cannot be made ({error.strerror}); set TMPDIR to a folder of your own"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EnvironmentLacks(
            f"{private} is not a directory of this user with mode 0700; remove it, or set TMPDIR"
        )
    return private / name
