"""Write inside a folder that a stranger may have made, without following links below it.

An archive keeps links. If `samples.txt` of a run were a link to a file of the user, a resumed run
would append to that file; if `checkpoints` were one, it would delete folders there. So code that
appends, truncates, locks, replaces or deletes below a run, study, comparison or cache

    refuses the folder at the start, if a link leads out of it: `refuse_links`, by `locks.lock`
    opens no file that is a link, or in a folder that is one: `inside`, an opener
    enters no subfolder that is a link: `subfolder`

A folder may be renamed while a program writes in it: `OpenFolder` knows its present path.

The folder itself may be a link: the user has named it, and runs may lie on another disk. A new file
that is renamed to its place (`durable.replace_file`) replaces a link, and not the link's target.
"""

import errno
import fcntl
import os
import stat
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from mlxhog.base.paths import printable
from mlxhog.base.reading import regular
from mlxhog.errors import MlxhogError

_WRITES = os.O_WRONLY | os.O_RDWR
_APPENDED = ("lock", ".jsonl", ".log", ".txt")
"""Ends of the names of files that are written in place, visible under a second name."""


def inside(folder: Path) -> Callable[[str, int], int]:
    """Return an opener of regular files below a folder, for `open(..., opener=inside(folder))`.

    It raises OSError: ELOOP if the file or a folder on the way to it is a link, EMLINK if it would
    write to a file with a second name, and those of `reading.regular`.
    """

    def opened(path: str, flags: int) -> int:
        *parents, name = Path(path).relative_to(folder).parts
        at = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for parent in parents:
                way = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                at, above = os.open(parent, way, dir_fd=at), at
                os.close(above)
            # It is truncated after it was checked.
            file = regular(name, (flags & ~os.O_TRUNC) | os.O_NOFOLLOW, folder=at)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(at)
        if flags & _WRITES and os.fstat(file).st_nlink > 1:
            os.close(file)
            raise OSError(errno.EMLINK, "it has a second name, by a hard link", path)
        if flags & os.O_TRUNC:
            os.ftruncate(file, 0)
        return file

    return opened


def subfolder(folder: Path, name: str) -> Path:
    """Create a folder in another one, unless it exists, and return it; OSError for a link."""
    path = folder / name
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    path.mkdir(exist_ok=True)
    return path


class OpenFolder:
    """A folder that is kept open, and so is found where it was renamed; picklable."""

    def __init__(self, path: Path) -> None:
        self._first, self._descriptor = path, -1
        with suppress(OSError):  # it is missing, or the limit of open files is reached
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path,)

    @property
    def path(self) -> Path:
        """Its present path; the first one if it was removed, or that is not known."""
        now = path_of(self._descriptor)
        return self._first if now is None or not now.is_dir() else now


def path_of(descriptor: int) -> Path | None:
    """Return the present path of an open folder; None if the system does not tell."""
    try:
        if get_path := getattr(fcntl, "F_GETPATH", None):  # macOS
            content = bytes(fcntl.fcntl(descriptor, get_path, bytes(1024)))
            return Path(os.fsdecode(content.partition(b"\0")[0]))
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except (OSError, ValueError):  # also of -1, which is no descriptor
        return None


def refuse_links(folder: Path, refusal: Callable[[str], MlxhogError]) -> None:
    """Raise the error of `refusal` if writing in a folder could change files elsewhere.

    A link may lead inside, as links to checkpoints do, unless it has the name of a file that is
    written in place, which may have no hard link, either. The argument of `refusal` is the end of a
    sentence about the folder, with the link and a way out.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            path = Path(parent, name)
            try:
                status = path.lstat()
                target = Path(os.path.realpath(path)) if stat.S_ISLNK(status.st_mode) else None
            except OSError:  # it is gone: another process removes its own files
                continue
            shown, is_appended = printable(path.relative_to(folder)), name.endswith(_APPENDED)
            if target is not None:
                if not target.is_relative_to(root) or (is_appended and target.is_file()):
                    raise refusal(
                        f"is not written to: its {shown} is a link to {printable(target)}, "
                        "which would be changed; remove the link or replace it by a copy"
                    )
            elif status.st_nlink > 1 and stat.S_ISREG(status.st_mode) and is_appended:
                raise refusal(
                    f"is not written to: its {shown} has a second name (a hard link), whose "
                    "content would be changed; use a copy of the folder (cp -r)"
                )
