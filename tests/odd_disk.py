"""Disks that lack what a memory stick, a network disk or FUSE lacks, or that two hosts share."""

import errno
import fcntl
import mmap
import os
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxhog.base import mapped

LACKS = {
    "locks": (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EINVAL, errno.EIO),
    "folder_fsync": (errno.EINVAL, errno.EIO, errno.EBADF, errno.ENOSYS, errno.EACCES),
    "shared_maps": (errno.ENODEV, errno.EINVAL, errno.EACCES, errno.ENOSYS),
    "sockets": (errno.EOPNOTSUPP, errno.EPERM, errno.EIO, errno.EINVAL, errno.EACCES),
    "links": (errno.EPERM, errno.EOPNOTSUPP, errno.EPROTO, errno.EROFS, errno.EIO),
}
"""What a disk may lack -> the errors with which such disks refuse it."""

EVERY = [(kind, number) for kind, numbers in LACKS.items() for number in numbers]
_GETPATH = 50  # fcntl.F_GETPATH of macOS


def _path(file):
    descriptor = file if isinstance(file, int) else file.fileno()
    try:
        return os.readlink(f"/dev/fd/{descriptor}")  # a link on Linux, also in a simulated macOS
    except OSError:
        return fcntl.fcntl(descriptor, _GETPATH, bytes(1024)).rstrip(b"\0").decode()


@contextmanager
def odd_disk(folder, kind, number):
    """Let the disk of a folder refuse one kind of operations in the block."""
    top = os.path.realpath(folder)

    def refuse(path):
        if Path(os.path.realpath(path)).is_relative_to(top):
            raise OSError(number, os.strerror(number))

    def refusing(place, name, path_of):
        real = getattr(place, name)

        def call(*args, **how):
            refuse(path_of(*args))
            return real(*args, **how)

        patch.setattr(place, name, call)

    def new_map(cls, descriptor, *args, **how):
        if descriptor >= 0 and how.get("flags", mmap.MAP_SHARED) & mmap.MAP_SHARED:
            refuse(_path(descriptor))
        return real_map.__new__(cls, descriptor, *args, **how)

    class Map(mmap.mmap):
        __new__ = new_map

    class Socket(socket.socket):
        def bind(self, address):
            refuse(address)
            super().bind(address)

    real_map = mmap.mmap
    with pytest.MonkeyPatch.context() as patch:
        if kind == "locks":
            refusing(fcntl, "flock", lambda file, how: _path(file))
        elif kind == "folder_fsync":
            anywhere = "/"  # other files can be flushed

            def folder_of(descriptor):
                return path if os.path.isdir(path := _path(descriptor)) else anywhere

            refusing(os, "fsync", folder_of)
        elif kind == "shared_maps":
            patch.setattr(mmap, "mmap", Map)
            patch.setattr(mapped._Mapping, "__new__", new_map, raising=False)
        elif kind == "sockets":
            patch.setattr(socket, "socket", Socket)
        else:
            refusing(os, "symlink", lambda target, path, *_: path)
        yield


@contextmanager
def nfs_locks():
    """Refuse an exclusive lock of a file that is not open for writing, as NFS does: flock(2)."""
    real = fcntl.flock

    def flock(file, how):
        is_writable = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if how & fcntl.LOCK_EX and not is_writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return real(file, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        yield


def held_elsewhere(folder):
    """Let another host hold a run or study, on a disk that does not share locks."""
    (folder / "lock").touch()
    record = folder / "holder.json"
    record.write_text('{"pid": 7, "host": "another", "boot": "0-1"}')
    return record
