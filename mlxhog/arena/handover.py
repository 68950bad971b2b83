"""Serving an arena's descriptor to later readers, over a Unix socket, to the same user only.

A run's supervisor serves a read-only descriptor and the arena's layout, which `generate` and other
readers receive. If the
run publishes copies for readers, they also receive the descriptor of the readers' page
(`published.py`). The socket file of a dead server stays; no process answers on it, so it is
recognised and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import stat
import struct
import sys
import tempfile
import threading
from functools import cache
from importlib.metadata import version
from pathlib import Path

from mlxhog.errors import ArenaError

_GREETING_BYTES = 48
RECEIVED = b"!"
_LENGTH = struct.Struct("<Q")
_PATH_BYTES = 103  # macOS: 104 with the zero byte; Linux has 108
ANSWER_S = 5.0  # how long each side waits for the other
_RECEIPT_S = 1.0
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1  # macOS: <sys/un.h>, gives struct xucred
_XUCRED_BYTES = 76  # u32 version, u32 uid, i16 number of groups, 16 u32 groups


@cache
def greeting() -> bytes:
    """The first bytes of a server: only the same version of mlxhog understands the rest."""
    return f"mlxhog-arena {version('mlxhog')}".encode().ljust(_GREETING_BYTES)[:_GREETING_BYTES]


class NoAnswer(ArenaError):
    """The process that serves a run does not answer: it is stopped, or the machine is very busy."""


def socket_path(directory: Path, name: str = "socket") -> Path:
    """The path of a socket of a run directory.

    It is in the run directory. If that path is too long for a socket, it is in a private directory
    of this user in the temporary directory.

    Raises:
        ArenaError: the path of that private directory is not such a directory.
    """
    inside = directory.absolute() / name
    if len(os.fsencode(inside)) <= _PATH_BYTES:
        return inside
    private = Path(tempfile.gettempdir()) / f"mlxhog-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            private.mkdir(mode=0o700)
        status = private.lstat()
    except OSError as error:
        raise ArenaError(f"{private} cannot be made ({error.strerror}); set TMPDIR") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ArenaError(
            f"{private} is not a directory of this user with mode 0700; remove it, or set TMPDIR"
        )
    return private / hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]


class DescriptorServer:
    """Sends a message and one or two descriptors to every connection of the same user.

    Concurrency: serves from a daemon thread of its own; one connection at a time.
    """

    def __init__(self, path: Path, message: bytes, *fds: int) -> None:
        """Start serving `message` and `fds` at `path` until `close`; they have to stay open.

        Raises:
            ArenaError: a living process already serves at this path, or the path is unusable.
        """
        self.path = path
        self._message, self._fds = _LENGTH.pack(len(message)) + message, fds
        self._socket = listen(path)
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="mlxhog-handover", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and remove the socket."""
        if self._socket.fileno() < 0:
            return
        self._wake_write.send(b"x")
        self._thread.join()
        for end in (self._socket, self._wake_read, self._wake_write):
            end.close()
        remove(self.path)

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._wake_read], [], [])
            if self._wake_read in ready:
                return
            try:
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(ANSWER_S)
                    if peer_uid(connection) == os.getuid():
                        socket.send_fds(connection, [greeting()], self._fds)
                        connection.sendall(self._message)
                        # macOS may drop a descriptor in flight when this end closes (CPython issue
                        # 14669), so the reader confirms that it has received it.
                        connection.settimeout(_RECEIPT_S)
                        connection.recv(len(RECEIVED))
            except OSError:
                continue  # this reader has disconnected; serve the next one

    def __enter__(self) -> DescriptorServer:
        """Serve until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.close()


def receive(path: Path, timeout_s: float = ANSWER_S) -> tuple[bytes, list[int]]:
    """What a `DescriptorServer` of the same user serves at `path`: its message and descriptors.

    Raises:
        NoAnswer: its process does not answer in this time.
        ArenaError: there is no socket, or it is stale, or another program's or user's.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(os.fspath(path))
        except FileNotFoundError as error:
            raise ArenaError(f"no socket {path}; the run is no longer training") from error
        except ConnectionRefusedError as error:
            raise ArenaError(
                f"the socket {path} is stale: its run was killed; resume it, or read its checkpoint"
            ) from error
        except (TimeoutError, BlockingIOError) as error:
            raise NoAnswer(f"the process that serves {path} accepts no connection") from error
        except OSError as error:
            raise ArenaError(f"cannot connect to {path}: {error}") from error
        try:
            if peer_uid(connection) != os.getuid():
                raise ArenaError(f"the socket {path} is served by another user")
            answer, fds, _, _ = socket.recv_fds(connection, _GREETING_BYTES, 2)
            message = _rest(connection) if answer == greeting() and fds else None
            with contextlib.suppress(OSError):  # the server may have stopped waiting for this
                connection.send(RECEIVED)
        except TimeoutError as error:
            raise NoAnswer(
                f"the process that serves {path} has not answered in {timeout_s:g} s"
            ) from error
        except OSError as error:
            raise ArenaError(f"no descriptor came from {path}: {error}") from error
    if message is None:
        for fd in fds:
            os.close(fd)
        raise ArenaError(
            f"{path} answered {answer!r}, expected {greeting()!r}: it is not the socket of a run "
            "of this version of mlxhog"
        )
    for fd in fds:
        os.set_inheritable(fd, False)
    return message, fds


def _rest(connection: socket.socket) -> bytes:
    """The message behind a greeting.

    Raises:
        OSError: the other side hangs up before its end.
    """
    with connection.makefile("rb") as file:
        (n_bytes,) = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))
        message = file.read(n_bytes)
    if not message or len(message) < n_bytes:
        raise ConnectionResetError("it ended amid its message")
    return message


def is_stale(path: Path) -> bool:
    """Whether no process serves the socket file at `path` any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def remove(path: Path) -> None:
    """Remove a socket file that this process served; its folder may have been moved or replaced."""
    with contextlib.suppress(OSError):
        if is_stale(path):  # else it is that of another process
            path.unlink(missing_ok=True)


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`; only this user may connect to it.

    Raises:
        ArenaError: a living process serves at this path, or the path is unusable.
    """
    if path.is_socket() and is_stale(path):
        path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        os.chmod(path, 0o600)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ArenaError(
            f"cannot serve the run at {path}: {error}; is another process running in this run "
            "directory?"
        ) from error
    return listener


def peer_uid(connection: socket.socket) -> int:
    """User id of the process at the other end."""
    if sys.platform == "darwin":
        raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
        return int(struct.unpack_from("=2I", raw)[1])
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
