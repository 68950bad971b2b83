"""Write files that are whole or absent, even after a kill or on a full disk.

New content is written beside the old under a `.part` name with the writer's pid, flushed to the
disk, and renamed.

Flushing, flushing of folders and links are left out on a disk without them (`disk`).
"""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from mlxhog.base import darwin
from mlxhog.base.disk import disk_of, flush
from mlxhog.base.inside import inside
from mlxhog.base.locks import lock_file
from mlxhog.base.paths import printable
from mlxhog.base.reading import open_regular
from mlxhog.errors import EnvironmentLacks

SPACE_MARGIN = 1.1  # free bytes that are required per byte to be written
_TAIL_BYTES = 1 << 16  # that are read at a time to find the end of the last whole line

_EXPLAINED = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the quota of this disk is used up; free some space",
    errno.EIO: "the disk reports an error; look at the system's log",
    errno.ENOENT: "its directory no longer exists; was it moved or deleted?",
    errno.EISDIR: "a folder has this name; rename or remove it",
    errno.ENOTDIR: "a file has the name of its folder; rename or remove it",
    errno.EEXIST: "something else has this name; rename or remove it",
    errno.EMFILE: "no more files can be opened; raise the limit (ulimit -n 1024), or close some",
    errno.ELOOP: "it, or a folder on the way to it, is a link; replace the link by a copy",
    errno.EMLINK: "it has a second name (a hard link), whose content would change; use a copy",
    errno.EFBIG: "files of this process may not be that large; raise the limit (ulimit -f)",
}


def sync(path: Path) -> None:
    """Flush a written file or directory to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            flush(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir() or disk_of(path).folder_fsync:
            raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk; not atomic, for files in a `.part` directory.

    An existing file is removed first, so that no link redirects the content.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        flush(file.fileno())


def remove(path: Path) -> None:
    """Remove a directory, a file, or a link (not its target), as far as the system allows."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def disk_bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a directory, without following links."""
    files, n_bytes = [os.fspath(path)], 0
    if path.is_dir() and not path.is_symlink():
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    for file in files:
        with contextlib.suppress(OSError):  # it was removed meanwhile
            n_bytes += os.lstat(file).st_size
    return n_bytes


@contextlib.contextmanager
def new_directory(target: Path, *, mark: str = "") -> Iterator[Path]:
    """Create a directory, to be filled in the block, then flush it and rename it to `target`.

    An existing `target` is first renamed to an `.old` name, then removed. If the block raises, the
    new directory is removed; a killed process leaves `.part` or `.old` names, `mark` before them.

    Raises:
        FileExistsError: the `.part` name is another's, and stays.
    """
    part, old = (target.with_name(f"{target.name}{mark}.{end}") for end in ("part", "old"))
    part.mkdir()
    try:
        yield part
        sync(part)
        if os.path.lexists(target):
            os.replace(target, old)
        os.replace(part, target)
        sync(target.parent)
        remove(old)
    finally:
        remove(part)


def clear_remains(target: Path) -> None:
    """Remove what killed processes left of `new_directory` with their ids as its `mark`.

    An `.old` target without a successor is renamed back.
    """
    import psutil  # which commands that only list things do not need

    for remains in target.parent.glob(f"{glob.escape(target.name)}.*.*"):
        name = re.fullmatch(r"([1-9]\d{0,8})\.(part|old)", remains.name[len(target.name) + 1 :])
        # Remains with this process's own pid are those of an earlier container.
        if name is None or (int(name[1]) != os.getpid() and psutil.pid_exists(int(name[1]))):
            continue
        if name[2] == "old" and not target.exists():
            os.replace(remains, target)
        else:
            shutil.rmtree(remains, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of a file; a reader sees the old file or the new one.

    Raises:
        EnvironmentLacks: the disk is full; the old file is untouched.
        OSError: the system refuses otherwise; the old file is untouched. See `disk_errors`.

    Concurrency: two processes that replace one file at once both succeed, one after the other.
    """
    with disk_errors(f"writing {path}", only_full=True):
        with _replacing(path) as part:
            write_synced(part, content)
        sync(path.parent)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Rename the `.part` file that the block creates to `path`."""
    # Processes of containers that share a disk may have the same id.
    part = path.with_name(f"{path.name}.{os.urandom(6).hex()}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError:
        remove(part)
        raise


def replace_link(path: Path, target: Path) -> bool:
    """Make `path` a link to `target`; at any moment it leads to the old or the new target.

    Returns whether there is a link now: none on a file system without links. A file or folder at
    `path` that is not a link, as in a copy by `cp -rL`, stays.

    Raises:
        OSError: the system refuses otherwise; the old link is unchanged.
    """
    if os.path.lexists(path) and not path.is_symlink():
        return False
    try:
        with _replacing(path) as part:
            remove(part)
            part.symlink_to(target)
        return True
    except OSError:
        if disk_of(path.parent).links:
            raise
        return False


def require_space(directory: Path, n_bytes: int, what: str) -> None:
    """Raise EnvironmentLacks if a directory's disk lacks the space for so many bytes."""
    try:
        status = os.statvfs(directory)
    except OSError:  # writing there says why, or the disk does not know, as some FUSE
        return
    if not status.f_blocks:
        return
    free = status.f_bavail * status.f_frsize
    n_needed = int(n_bytes * SPACE_MARGIN)
    if free < n_needed:
        raise EnvironmentLacks(
            f"{what} needs {n_needed:,} bytes on the disk of {directory}, {free:,} are free; "
            "free some space or choose another directory"
        )


@contextlib.contextmanager
def disk_errors(doing: str, *, only_full: bool = False) -> Iterator[None]:
    """Turn OSErrors, or only those of a full disk or quota, into `EnvironmentLacks`.

    `doing` names the block's work in the message, such as "writing notes.txt".
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentLacks(
                f"the disk became full while {doing}; free some space and try again"
            ) from error
        if only_full:
            raise
        raise EnvironmentLacks(f"{doing} failed: {explained(error)}") from error


def explained(error: OSError) -> str:
    """Return why a file cannot be written, and the way out."""
    if error.errno == errno.EEXIST and error.filename:
        return f"{printable(error.filename)} is something else; rename or remove it"
    reason = f"{darwin.reason(error)}; choose another directory, or make it writable"
    return _EXPLAINED.get(error.errno or 0, reason)


def append_lines(
    path: Path, lines: bytes, *, synced: bool = False, below: Path | None = None
) -> None:
    """Append whole lines to a file, in place of the unfinished last line of a killed process.

    A missing file is created; `synced` lines are flushed to the disk. No link is followed below the
    folder `below`, or for the file itself.

    Raises:
        EnvironmentLacks: the system refuses; none of the lines is written.

    Concurrency: any number of processes may append at once.
    """
    opener = inside(below or path.parent)
    with disk_errors(f"writing {path}"), open(path, "a+b", buffering=0, opener=opener) as file:
        with lock_file(file, path, fcntl.LOCK_EX):
            end = _end_of_lines(file.fileno())
            file.truncate(end)
            append_all(file.fileno(), lines, synced=synced)
    if synced and end == 0:
        sync(path.parent)


def _end_of_lines(descriptor: int) -> int:
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(end - _TAIL_BYTES, 0)
        if at := os.pread(descriptor, end - begin, begin).rfind(b"\n") + 1:
            return begin + at
        end = begin
    return 0


def append_all(descriptor: int, content: bytes, *, synced: bool = False) -> None:
    """Append bytes to a file that is open with O_APPEND: all, or none with an OSError.

    The write is unbuffered: a buffer would write its rest when it is closed after an error. No
    other process may append meanwhile.
    """
    end = os.fstat(descriptor).st_size
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if synced:
            flush(descriptor)
    except BaseException:  # an interrupt, too
        os.ftruncate(descriptor, end)
        raise


def read_lines(path: Path, begin: int, most: int) -> bytes:
    """Return whole lines of a growing file, from the offset of a line on.

    It waits for an append in progress, so no returned line is removed later. The line that crosses
    `most` bytes is read to its end.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if it does not exist.
    """
    with open_regular(path) as file, lock_file(file, path, fcntl.LOCK_SH):
        file.seek(begin)
        lines = file.read(most) + file.readline()
    return lines[: lines.rfind(b"\n") + 1]
