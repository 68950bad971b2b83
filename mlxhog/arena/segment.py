"""A shared segment: its life, and its first page, which identifies an arena.

Its name is removed right after its creation, so the system frees it with its last descriptor, and a
kill of any process at any moment leaves no segment behind. Workers inherit the descriptor at spawn,
later readers get it over a socket (`handover.py`). Linux and macOS share one code path, with one
difference: macOS lacks `posix_fallocate`, which on Linux makes a full /dev/shm an error here
instead of a SIGBUS later. If the system forbids shared memory (an app sandbox on macOS allows only
names that begin with the app's group), an unnamed file takes its place, and the `Backing` says so.

The first page is the header, little endian:

    byte  bytes  field
       0      8  magic "MLXHOGAR"; written last, so that an unfinished arena is not accepted
       8      4  version of this format
      12      4  bytes of this header
      16      8  bytes of the arena
      24      8  bytes of the layout's JSON, which starts on page 1
      32     32  SHA-256 of the layout's JSON
      64     64  run id, UTF-8, zero padded
     128     16  write mode, ASCII, zero padded
     144      8  pid of the creator
     152      8  start time of the creator (`process_start_time`)
     160     32  SHA-256 of the bytes before
"""

from __future__ import annotations

import _posixshmem  # type: ignore[import-not-found]
import errno
import hashlib
import mmap
import os
import resource
import secrets
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlxhog.arena.layout import PAGE, Layout
from mlxhog.arena.process import available_bytes
from mlxhog.errors import ArenaError, EnvironmentLacks
from mlxhog.files.durable import require_space

_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)
_FORBIDDEN = (
    *(errno.EPERM, errno.EACCES, errno.ENAMETOOLONG),  # a sandbox
    *(errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.ENOSYS),  # no /dev/shm, or a read-only one
)
_LIMITS = {
    errno.EFBIG: (resource.RLIMIT_FSIZE, "-f"),  # this limit holds for shared memory, too
    errno.ENOMEM: (resource.RLIMIT_AS, "-v"),
}


@dataclass(frozen=True)
class Backing:
    """A new segment, with two descriptors of the same bytes: one writable, one read-only.

    Attributes:
        fd: writable descriptor.
        readonly_fd: read-only descriptor.
        mapping: mapping of the whole segment.
        note: a sentence for the user if shared memory was refused and a file took its place, or "".
    """

    fd: int
    readonly_fd: int
    mapping: mmap.mmap
    note: str = ""


def create(
    nbytes: int,
    *,
    needed_bytes: int | None = None,
    directory: Path | None = None,
    fallback: Path | None = None,
) -> Backing:
    """Create and map a zeroed segment without a name in any directory.

    Args:
        nbytes: size, rounded up to 16 KiB.
        needed_bytes: bytes of it that will be used; default: all.
        directory: use a file in this directory instead of shared memory. It is slower if the
            system writes dirty pages to the disk.
        fallback: directory of that file if shared memory is forbidden; None is the temporary
            directory.

    Raises:
        EnvironmentLacks: there is too little memory or, for a file, too little space on the disk.
    """
    nbytes = -(-nbytes // PAGE) * PAGE
    needed_bytes = nbytes if needed_bytes is None else needed_bytes
    note = ""
    had = available_bytes()
    if directory is None and had and needed_bytes > had:
        raise _too_large(needed_bytes, had)
    if directory is None:
        try:
            fd, readonly_fd = _open_shm()
        except OSError as error:
            if error.errno not in _FORBIDDEN:
                raise
            directory = fallback or Path(tempfile.gettempdir())
            note = (
                f"shared memory is refused here ({error.strerror}: a sandboxed Python, or a "
                f"container without /dev/shm?), so the arena of {nbytes:,} bytes is an unnamed "
                f"file in {directory}; this is slower, since the system writes it to the disk now "
                "and then: a Python outside of the sandbox, or a writable /dev/shm, avoids that"
            )
    if directory is not None:
        require_space(directory, nbytes, "the arena")
        fd, readonly_fd = _open_file(directory)
    try:
        os.ftruncate(fd, nbytes)  # once only: macOS refuses a second time
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)
        mapping = mmap.mmap(fd, nbytes)
    except OSError as error:
        os.close(fd)
        os.close(readonly_fd)
        if refusal := _refusal(error, nbytes, had):
            raise refusal from error
        raise
    return Backing(fd, readonly_fd, mapping, note)


def attach(fd: int, *, readonly: bool) -> mmap.mmap:
    """Map all bytes of a descriptor.

    Raises:
        ArenaError: the descriptor has no bytes, or cannot be mapped in this way.
    """
    size = os.fstat(fd).st_size
    if size == 0:
        raise ArenaError("not an arena: the descriptor has no bytes")
    try:
        return mmap.mmap(fd, size, access=mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE)
    except OSError as error:
        raise ArenaError(
            f"the arena cannot be mapped ({error.strerror}); the descriptor of a reader can be "
            "mapped read-only"
        ) from error


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


def _open_file(directory: Path) -> tuple[int, int]:
    fd, name = tempfile.mkstemp(prefix="arena-", dir=directory)
    try:
        return fd, os.open(name, os.O_RDONLY)
    except OSError:
        os.close(fd)
        raise
    finally:
        os.unlink(name)


def _refusal(error: OSError, nbytes: int, had: int) -> EnvironmentLacks | None:
    """The error for an arena that is too large for this process; None for another error."""
    limit, option = _LIMITS.get(error.errno or 0, (resource.RLIMIT_AS, "-v"))
    allowed, _ = resource.getrlimit(limit)
    if error.errno in _LIMITS and allowed != resource.RLIM_INFINITY:
        return EnvironmentLacks(
            f"the arena needs {nbytes:,} bytes, this process may have {allowed:,} (ulimit "
            f"{option}); raise that limit, or use a smaller model"
        )
    return _too_large(nbytes, had) if error.errno in _NO_ROOM else None


def _too_large(nbytes: int, had: int) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"the arena needs {nbytes:,} bytes of shared memory, this machine has {had:,}; "
        "use a smaller model, fewer max_workers, an optimizer with less state, "
        "or (in a container) a larger /dev/shm"
    )


MAGIC = b"MLXHOGAR"
VERSION = 3
_BODY = struct.Struct("<8sIIQQ32s64s16sqQ")
_RUN_ID_BYTES = 64
HEADER_BYTES = _BODY.size + 32


@dataclass(frozen=True)
class Header:
    """The fields of the first page that callers of an arena use."""

    total_bytes: int
    layout_bytes: int
    layout_sha256: bytes
    run_id: str
    write: str
    creator_pid: int
    creator_start_time: int

    def pack(self) -> bytes:
        """The header's bytes, checksum included.

        Raises:
            ArenaError: the run id is longer than its field.
        """
        run_id = self.run_id.encode()
        if len(run_id) > _RUN_ID_BYTES:
            raise ArenaError(
                f"the run id {self.run_id!r} has {len(run_id)} bytes; at most {_RUN_ID_BYTES} fit"
            )
        body = _BODY.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            self.total_bytes,
            self.layout_bytes,
            self.layout_sha256,
            run_id,
            self.write.encode(),
            self.creator_pid,
            self.creator_start_time,
        )
        return body + hashlib.sha256(body).digest()


def read_header(data: memoryview) -> tuple[Header, Layout]:
    """Header and layout of an arena's bytes, after every check.

    Args:
        data: the whole arena, which may be truncated.

    Raises:
        ArenaError: not an arena, one of another version, truncated, or damaged; says which.
    """
    if len(data) < HEADER_BYTES:
        raise ArenaError(f"not an arena: {len(data)} bytes, a header alone has {HEADER_BYTES}")
    raw = bytes(data[:HEADER_BYTES])
    body, checksum = raw[: _BODY.size], raw[_BODY.size :]
    magic, version, header_bytes, total, layout_bytes, digest, run_id, write, pid, start = (
        _BODY.unpack(body)
    )
    if magic != MAGIC:
        raise ArenaError(
            f"not an arena: it starts with {magic!r}, not {MAGIC!r}; either these bytes belong to "
            "another program, or their creator died before they were complete"
        )
    if (version, header_bytes) != (VERSION, HEADER_BYTES):
        raise ArenaError(
            f"the arena has format {version} with {header_bytes} header bytes, this mlxhog reads "
            f"format {VERSION} with {HEADER_BYTES}; attach with the version that created it"
        )
    if hashlib.sha256(body).digest() != checksum:
        raise ArenaError("the arena's header is corrupted: its checksum does not match")
    if len(data) < total:
        raise ArenaError(f"the arena is truncated: {len(data)} bytes of {total}")
    text = bytes(data[PAGE : PAGE + layout_bytes])
    if hashlib.sha256(text).digest() != digest:
        raise ArenaError("the arena's layout is corrupted: its digest does not match")
    header = Header(
        total_bytes=total,
        layout_bytes=layout_bytes,
        layout_sha256=digest,
        run_id=run_id.rstrip(b"\0").decode(errors="replace"),
        write=write.rstrip(b"\0").decode(errors="replace"),
        creator_pid=pid,
        creator_start_time=start,
    )
    layout = Layout.from_json(text.decode(errors="replace"))
    if layout.total_bytes != total:
        raise ArenaError(
            f"the arena's header says {total} bytes, its layout {layout.total_bytes}; "
            "it is corrupted"
        )
    return header, layout
