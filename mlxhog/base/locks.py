"""Locks of files and folders, released when their holder dies.

A lock is the kernel's, on an open file (flock), or on its stand-in on the local disk where the
file's disk has no locks. Neither need reach other machines on the same disk: NFS, Lustre and FUSE
may keep flock to one machine. So the holder of a folder also writes a record there, created by
O_EXCL, which is atomic on every disk, and touches it every `HEARTBEAT_S`:

    FOLDER/lock          empty; its lock is the kernel's
    FOLDER/holder.json   pid, host and boot of the holder; absent while the folder is free

A process that gets the kernel's lock first reads the record:

    the same host and boot   the holder is dead, for it has lost the kernel's lock. On a disk
                             without locks it may be of another user: it lives while its pid does
    the same host, rebooted  the holder is dead
    another host             the holder lives if it touched its record within the heartbeat timeout,
                             by the clock of the disk, since clocks of machines may differ
"""

import contextlib
import fcntl
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from mlxhog.base import darwin, plain_json, reading, typed
from mlxhog.base.disk import disk_of, stand_in
from mlxhog.base.inside import inside, refuse_links
from mlxhog.errors import EnvironmentLacks, MlxhogError

HEARTBEAT_S = 5.0
HEARTBEAT_TIMEOUT_S = 60.0
PATIENCE_S = 0.2
"""How long `lock` waits: `holder` of another process has the lock for some microseconds."""

LOCK, RECORD = "lock", "holder.json"
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")  # of Linux


def lock_file(file: IO[Any], path: Path, kind: int) -> IO[Any]:
    """Lock the open file of a path, or its stand-in; the lock is held until the result is closed.

    `kind` is that of `fcntl.flock`.

    Raises:
        BlockingIOError: another process holds it, and `kind` has LOCK_NB.
        EnvironmentLacks: the system refuses; or the disk has no locks, and neither has TMPDIR.
    """
    with contextlib.ExitStack() as opened:
        try:
            try:
                fcntl.flock(file, kind)
                return file
            except BlockingIOError:
                raise
            except OSError:
                if disk_of(path.parent).locks:
                    raise
            other = opened.enter_context(open(stand_in(path), "ab", opener=reading.regular))
            fcntl.flock(other, kind)
            opened.pop_all()
            return other
        except BlockingIOError:
            raise
        except OSError as error:
            raise EnvironmentLacks(
                f"{path} cannot be locked: {error.strerror}; use a folder on another disk "
                "(--runs-dir, XDG_CACHE_HOME, TMPDIR)"
            ) from error


# -- who holds a folder ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder, and its machine."""

    pid: int = 0  # 0 is unknown
    host: str = ""
    boot: str = ""  # of its host, see `boot_id`

    @property
    def is_here(self) -> bool:
        """Whether its machine is this one.

        The name of a Mac may change with its network while programs run, and the id of its boot is
        its own; on Linux, containers share that of their machine.
        """
        return self.host == host() or (sys.platform == "darwin" and self.boot == boot_id())

    @property
    def elsewhere(self) -> str:
        """The name of its host if that is another one, else ""."""
        return "" if self.is_here else self.host

    def __str__(self) -> str:
        place = f" on {self.elsewhere}" if self.elsewhere else ""
        return f"process {self.pid or 'unknown'}{place}"


def host() -> str:
    """Return the name of this machine in its network."""
    return os.uname().nodename


@cache
def boot_id() -> str:
    """Return an id of this machine's present boot; "" if the system has none."""
    if uuid := darwin.sysctl_text("kern.bootsessionuuid"):
        return uuid
    with contextlib.suppress(OSError):
        return BOOT_FILE.read_text().strip()
    return (darwin.sysctl("kern.boottime") or b"").hex()


@contextlib.contextmanager
def lock(folder: Path, refusal: Callable[[str], MlxhogError]) -> Iterator[None]:
    """Hold the lock of a folder in the block.

    `refusal` makes the error for a folder that another process holds, that cannot be opened or has
    links out of it, from the end of a sentence: "is in use by process 7; wait for it, ...".
    """
    refuse_links(folder, refusal)
    try:
        file = open(folder / LOCK, "a+", opener=inside(folder))
    except OSError as error:
        raise refusal(
            f"cannot be locked: its file {LOCK} cannot be opened ({darwin.reason(error)}); make "
            "both writable, remove the file if mlxhog did not make it"
        ) from error
    with file, contextlib.ExitStack() as hold:
        try:
            kernels = _try(file, folder / LOCK, fcntl.LOCK_EX, PATIENCE_S)
            if kernels is None:
                raise refusal(_in_use(_read(folder) or Holder()))
            hold.enter_context(kernels)
            own, record = _claim(folder, refusal, is_certain=kernels is file)
        except OSError as error:
            raise EnvironmentLacks(
                f"locking {folder} failed: {error.strerror}; make it writable, and free some space "
                "if its disk is full"
            ) from error
        hold.enter_context(_kept(folder, own, record))
        yield


def holder(folder: Path) -> Holder | None:
    """Return the process that holds the lock of a folder now, or None."""
    path, is_certain = folder / LOCK, False
    try:
        with open(path, opener=inside(folder)) as file:
            kernels = _try(file, path, fcntl.LOCK_SH, 0.0)
            if kernels is None:
                return _read(folder) or Holder()
            is_certain = kernels is file
            kernels.close()
    except FileNotFoundError:  # no process has ever held it
        return None
    except (OSError, EnvironmentLacks):  # such as of another user
        pass
    return _living(folder, is_certain=is_certain)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder now."""
    return holder(folder) is not None


def is_in_use(path: Path) -> bool:
    """Whether a process has a lock of a file; not if it is missing, or its disk has no locks."""
    try:
        try:  # NFS has exclusive locks only of files that are open for writing
            file: IO[bytes] = open(path, "r+b", buffering=0, opener=reading.regular)
        except OSError:
            file = reading.open_regular(path)
        with file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def require_held(folder: Path) -> None:
    """Raise EnvironmentLacks if this process held a folder, and another machine has taken it.

    That happens after `HEARTBEAT_TIMEOUT_S` without a heartbeat: this machine sleeps, or its
    network is cut off. The other one may have ended since.
    """
    real = os.path.realpath(folder)
    own = _held.get(real)
    other = _read(folder)
    is_another = other is not None and other != own
    if own is not None and (is_another or real in _lost):
        raise EnvironmentLacks(
            f"{folder} now belongs to {other if is_another else 'nobody'}: this process had no "
            f"heartbeat for {HEARTBEAT_TIMEOUT_S:g} s (did its machine sleep?), so it writes no "
            "more there; see which of the two has the newer files"
        )


_held: dict[str, Holder] = {}  # by real paths of the folders that this process holds
_lost = set[str]()  # of them, those whose record was gone after a time without heartbeats


def _try(file: IO[Any], path: Path, kind: int, patience_s: float) -> IO[Any] | None:
    """Lock as `lock_file`, or return None if another process holds the lock for so long."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return lock_file(file, path, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)


def _in_use(by: Holder) -> str:
    there = " there" if by.elsewhere else ""
    return f"is in use by {by}; wait for it, stop it{there}{if_dead(by)}"


def if_dead(by: Holder) -> str:
    """Return the end of a message for the case that the holder's host has died; or ""."""
    return by.elsewhere and f", try again in {HEARTBEAT_TIMEOUT_S:g} s if {by.elsewhere} has died"


# -- the record ------------------------------------------------------------------------------------


def _claim(
    folder: Path, refusal: Callable[[str], MlxhogError], *, is_certain: bool
) -> tuple[Holder, int]:
    own = Holder(os.getpid(), host(), boot_id())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            descriptor = os.open(folder / RECORD, flags, 0o666)
        except FileExistsError:
            if (other := _living(folder, is_certain=is_certain)) is not None:
                raise refusal(_in_use(other)) from None
            # Two hosts without a common lock may both come here; `require_held` tells one of them.
            (folder / RECORD).unlink(missing_ok=True)
            continue
        try:
            os.write(descriptor, plain_json.dumps(asdict(own)) + b"\n")
        except BaseException:  # an interrupt, too
            os.close(descriptor)
            (folder / RECORD).unlink(missing_ok=True)
            raise
        return own, descriptor


@contextlib.contextmanager
def _kept(folder: Path, own: Holder, record: int) -> Iterator[None]:
    over, real = threading.Event(), os.path.realpath(folder)

    def beat() -> None:
        last_s = time.time()  # with the time in which the machine slept
        while not over.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                if time.time() - last_s > HEARTBEAT_TIMEOUT_S and not (folder / RECORD).exists():
                    _lost.add(real)
                os.utime(record)
                last_s = time.time()

    thread = threading.Thread(target=beat, name="mlxhog-lock", daemon=True)
    thread.start()
    _held[real] = own
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.close(record)
        _held.pop(real, None)  # a folder that was made again has been locked twice
        _lost.discard(real)
        with contextlib.suppress(OSError):  # the folder may have been moved or removed
            if _read(folder) == own:
                (folder / RECORD).unlink()


def _read(folder: Path) -> Holder | None:
    try:
        fields = plain_json.read(folder / RECORD)
    except (OSError, ValueError):  # absent, or not written yet
        return None
    return typed.fill(Holder, fields) if isinstance(fields, dict) else None


def _living(folder: Path, *, is_certain: bool) -> Holder | None:
    """Return the living holder in a folder's record, where the kernel's lock is free.

    `is_certain` says that this lock was the file's own, not its stand-in's.
    """
    one = _read(folder) or Holder()  # opening it makes NFS ask for its time anew
    try:
        touched_s = (folder / RECORD).lstat().st_mtime
    except OSError:
        return None
    if one.is_here:
        if one.boot != boot_id():
            if not one.host.startswith("localhost"):  # the name of many machines
                return None
        elif is_certain or not _exists(one.pid):
            return None
    return one if _disk_time_s(folder) - touched_s <= HEARTBEAT_TIMEOUT_S else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def _disk_time_s(folder: Path) -> float:
    """Return the disk's time, or this machine's if it is unknown."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".time-", dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
