"""The shared segment of an arena, and its life.

Its name is removed right after its creation, so the system frees it with its last descriptor, and a
kill at any moment leaves no segment behind. Workers inherit the descriptor at spawn, later readers
get it over a socket (`requests.py`). Linux alone has `posix_fallocate`, which makes a full /dev/shm
an error here instead of a SIGBUS later. Where shared memory is forbidden (in an app sandbox on
macOS), an unnamed file takes its place, and the `Backing` says so.
"""

import _posixshmem  # type: ignore[import-not-found]
import errno
import mmap
import os
import resource
import secrets
import tempfile
from pathlib import Path
from typing import NamedTuple

from mlxhog.arena.layout import PAGE
from mlxhog.base.disk import disk_of
from mlxhog.base.durable import require_space
from mlxhog.base.resources import MemoryLimit, available_shared_memory
from mlxhog.errors import EnvironmentLacks

_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)
_FORBIDDEN = (
    *(errno.EPERM, errno.EACCES, errno.ENAMETOOLONG),  # a sandbox
    *(errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.ENOSYS),  # no /dev/shm, or a read-only one
)
_LIMITS = {
    errno.EFBIG: (resource.RLIMIT_FSIZE, "-f"),  # this limit holds for shared memory, too
    errno.ENOMEM: (resource.RLIMIT_AS, "-v"),
}


class Backing(NamedTuple):
    """A new segment, with two descriptors of the same bytes: one writable, one read-only."""

    fd: int
    readonly_fd: int
    mapping: mmap.mmap
    note: str  # for the user if shared memory was refused and a file took its place, or ""


def create(nbytes: int, *, fallback: Path | None = None) -> Backing:
    """Create and map a zeroed segment without a name in any directory.

    Args:
        nbytes: size, rounded up to 16 KiB.
        fallback: directory of the file that takes its place if shared memory is forbidden; None is
            the temporary directory.

    Raises:
        EnvironmentLacks: there is too little memory or, for a file, too little space on the disk.
    """
    nbytes = -(-nbytes // PAGE) * PAGE
    note, available = "", available_shared_memory()
    if nbytes > available.n_bytes:
        raise _too_large(nbytes, available)
    try:
        fd, readonly_fd = _open_shm()
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
        directory = Path(tempfile.gettempdir())
        if fallback is not None and disk_of(fallback).shared_maps:
            directory = fallback
        note = (
            f"shared memory is refused here ({error.strerror}: a sandboxed Python, or a "
            f"container without /dev/shm?), so the arena of {nbytes:,} bytes is an unnamed "
            f"file in {directory}; this is slower, since the system writes it to the disk now "
            "and then: a Python outside of the sandbox, or a writable /dev/shm, avoids that"
        )
        require_space(directory, nbytes, "the arena")
        with tempfile.NamedTemporaryFile(prefix="arena-", dir=directory) as file:
            fd, readonly_fd = os.dup(file.fileno()), os.open(file.name, os.O_RDONLY)
    try:
        os.ftruncate(fd, nbytes)  # once only: macOS refuses a second time
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)
        mapping = mmap.mmap(fd, nbytes)
    except OSError as error:
        os.close(fd)
        os.close(readonly_fd)
        limit, option = _LIMITS.get(error.errno or 0, (resource.RLIMIT_AS, "-v"))
        allowed, _ = resource.getrlimit(limit)
        if error.errno in _LIMITS and allowed != resource.RLIM_INFINITY:
            raise EnvironmentLacks(
                f"the arena needs {nbytes:,} bytes, this process may have {allowed:,} (ulimit "
                f"{option}); raise that limit, or use a smaller model"
            ) from error
        if error.errno in _NO_ROOM:
            raise _too_large(nbytes, available_shared_memory()) from error
        if note:
            raise EnvironmentLacks(
                f"{note}; but {directory} cannot hold it either ({error.strerror}): set TMPDIR to "
                "a folder on another disk"
            ) from error
        raise
    return Backing(fd, readonly_fd, mapping, note)


def _open_shm() -> tuple[int, int]:
    name = f"/mh-{secrets.token_hex(4)}"  # macOS: at most 31 bytes with the slash
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    # _posixshmem and not ctypes: shm_open is variadic, which ctypes gets wrong on Apple silicon.
    fd = _posixshmem.shm_open(name, flags, mode=0o600)
    try:
        return fd, _posixshmem.shm_open(name, os.O_RDONLY, mode=0o600)
    except OSError:
        os.close(fd)
        raise
    finally:
        _posixshmem.shm_unlink(name)


def _too_large(nbytes: int, available: MemoryLimit) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"the arena needs {nbytes:,} bytes of shared memory, and {available.cause}; "
        f"{available.way_out}, or use a smaller model, fewer max_workers, or an optimizer with "
        "less state"
    )
