"""The socket of a run: other processes of the same user attach its arena, and send requests.

A client sends one JSON object in one line:

    {"request": "leave", "worker": 2}
    {"ok": true, "message": "worker 2 (torch:cpu) finishes its step and leaves"}
    {"ok": false, "error": "no worker 9; ...", "exit_code": 2}
    {"request": "attach"}
    {"ok": true, "version": "...", "bytes": 5123}

With the last comes the descriptor of the arena, read-only, and its layout follows. A reader keeps
its connection, and sends one more byte if it needs snapshots: the run publishes them while such
readers are connected. A dead process disconnects.

Each connection has a thread in the supervisor's process, which answers `attach` itself and hands
other requests on. The supervisor polls for them (`pop_requests`), and never waits for a client. It
holds the lock of its run, so a socket that it finds there is of a dead one.
"""

import contextlib
import os
import pickle
import queue
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.base import plain_json
from mlxhog.base.disk import SOCKET_PATH_BYTES, stand_in
from mlxhog.base.paths import quoted
from mlxhog.errors import ArenaError, EnvironmentLacks, MlxhogError, RunError

ATTACH = "attach"
MAX_BYTES = 1 << 16  # in the line of a client
SILENT_S = 5.0  # a client that has not sent a whole line after this time is dropped
POLL_S = 0.1  # interval at which the server checks whether it is closed
SEND_S = 60.0  # how long a client may take to read its answer
CONNECT_S = 5.0  # how long a reader waits for the arena
ANSWER_S = 60.0  # how long a client waits; a checkpoint of a large model may take long
SNAPSHOTS = b"c"  # from a reader that needs snapshots
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1  # macOS: <sys/un.h>, gives struct xucred
_XUCRED_BYTES = 76  # u32 version, u32 uid, i16 number of groups, 16 u32 groups


class Refused(RunError):
    """A run refuses a request; the client raises it with the run's message and exit code."""

    def __init__(self, message: str, exit_code: int = RunError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NoAnswer(ArenaError):
    """The process that serves a run does not answer: it is stopped, or the machine is very busy."""


class NotServed(ArenaError):
    """No process serves a run: it has ended, or was killed."""


# -- the server ----------------------------------------------------------------------------------


class ControlRequest:
    """One request by its name, with its other fields, which waits for its answer."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.name = str(fields.pop("request"))
        self.fields = fields
        self.reply = queue.SimpleQueue[dict[str, Any] | None]()  # None if there will be none

    def answer(self, **fields: Any) -> None:
        """Give the result."""
        self.reply.put({"ok": True, **fields})

    def refuse(self, error: MlxhogError) -> None:
        """Give the reason of a refusal."""
        self.reply.put({"ok": False, "error": str(error), "exit_code": error.exit_code})

    def hang_up(self) -> None:
        """Give no answer, since the run is ending."""
        self.reply.put(None)


class RunServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves the socket of a run, until closed."""

    daemon_threads, block_on_close = True, False
    request_queue_size = 64

    def __init__(self, path: Path, about: object = None, fds: tuple[int, ...] = ()) -> None:
        """Listen at a `socket_path`, or its stand-in; only this user may connect.

        Readers get `about`, pickled, and copies of the descriptors, which the caller may close.
        """
        self.path, self.about = path, pickle.dumps(about)
        self.queue = queue.SimpleQueue[ControlRequest]()
        try:
            self._listen()
        except OSError:  # the disk has no sockets, or none that are this user's alone
            try:
                path.unlink(missing_ok=True)
                self.path = stand_in(path)
                self._listen()
            except (OSError, EnvironmentLacks) as error:
                raise ArenaError(
                    f"cannot serve the run at {path} or {self.path}: {error}; set TMPDIR to a "
                    "folder of your own on a local disk"
                ) from error
        self.is_closed, self._fds = False, list[int]()
        self.came = self.present = 0  # readers that ever asked for snapshots, and those connected
        self._lock = threading.Lock()  # of all of these
        thread = threading.Thread(
            target=self.serve_forever, args=(POLL_S,), name="mlxhog-socket", daemon=True
        )
        try:
            self._fds += map(os.dup, fds)
            thread.start()
        except BaseException:  # no more descriptors or threads
            self._close_fds()
            self._leave()
            raise

    def _listen(self) -> None:
        self.path.unlink(missing_ok=True)
        super().__init__(os.fspath(self.path), _Client)
        try:
            os.chmod(self.path, 0o600)
        except OSError:
            self.server_close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a client in a thread of its own; refuse it while the system starts none."""
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            text = "the run can start no thread now (ulimit -u, or pids.max of a container)"
            answer = {"ok": False, "error": text, "exit_code": RunError.exit_code}
            with contextlib.suppress(OSError):
                request.settimeout(0)
                request.sendall(plain_json.dumps(answer) + b"\n")
            self.shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that has disconnected."""

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """Count a reader of snapshots during the block."""
        with self._lock:
            self.came, self.present = self.came + 1, self.present + 1
        try:
            yield
        finally:
            with self._lock:
                self.present -= 1

    def send_fds(self, connection: socket.socket, data: bytes) -> bool:
        """Send the descriptors with a few bytes; False if this is closed and has none."""
        with self._lock:
            if not self.is_closed:
                socket.send_fds(connection, [data], self._fds)
            return not self.is_closed

    def pop_requests(self) -> list[ControlRequest]:
        """The requests that have arrived; the caller must answer each. Never waits."""
        return [self.queue.get_nowait() for _ in range(self.queue.qsize())]

    def close(self) -> None:
        """Hang up, stop listening and remove the socket."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
            self._close_fds()  # the threads of clients go on, and may come to send them later
        self.shutdown()
        self._leave()
        for request in self.pop_requests():
            request.hang_up()

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _leave(self) -> None:
        self.server_close()
        with contextlib.suppress(OSError):  # its folder may have been moved
            self.path.unlink()

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.close()


class _Client(socketserver.StreamRequestHandler):
    """One connection, in a thread of its own."""

    server: RunServer
    connection: socket.socket

    def handle(self) -> None:
        if peer_uid(self.connection) not in (os.getuid(), 0):  # before the mode is set
            return
        self.connection.settimeout(SILENT_S)
        line = self.rfile.readline(MAX_BYTES + 1)
        if not line:
            return
        try:
            request = ControlRequest(_fields(line, "request"))
        except RunError as error:
            request = ControlRequest({"request": "unreadable"})
            request.refuse(error)
        else:
            if request.name == ATTACH:
                self._attach()
                return
            self.server.queue.put(request)
            if self.server.is_closed:  # the owner takes no more
                request.hang_up()
        if (reply := request.reply.get()) is not None:
            self.connection.settimeout(SEND_S)
            self.connection.sendall(plain_json.dumps(reply) + b"\n")

    def _attach(self) -> None:
        about = self.server.about
        answer = {"ok": True, "version": version("mlxhog"), "bytes": len(about)}
        if not self.server.send_fds(self.connection, b"{"):
            return
        self.connection.sendall(plain_json.dumps(answer)[1:] + b"\n" + about)
        # Open as long as the reader's end: macOS may drop a descriptor in flight when this end
        # closes (CPython issue 14669).
        self.connection.settimeout(None)
        if self.connection.recv(1) == SNAPSHOTS:
            with self.server.reader():
                self.connection.recv(1)


# -- clients -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _asked(path: Path, timeout_s: float, request: str, **fields: Any) -> Iterator[socket.socket]:
    """Connect to a run of the same user, and send it a request; the block reads the answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(os.fspath(path))
        if peer_uid(connection) != os.getuid():
            raise ArenaError(f"the socket {path} is served by another user")
        connection.sendall(plain_json.dumps({"request": request, **fields}) + b"\n")
        yield connection
    except FileNotFoundError as error:
        raise NotServed(f"no socket {path}; the run is no longer training") from error
    except ConnectionRefusedError as error:
        raise NotServed(
            f"the socket {path} is stale: its run was killed; resume it, or read its checkpoint"
        ) from error
    except (TimeoutError, BlockingIOError) as error:
        raise NoAnswer(
            f"the process that serves {path} has not answered in {timeout_s:g} s; is it stopped "
            "(Ctrl-Z)?"
        ) from error
    except OSError as error:
        raise ArenaError(f"no answer came from {path}: {error}") from error
    finally:
        connection.close()


def attach(path: Path, timeout_s: float = CONNECT_S) -> tuple[Any, int, socket.socket]:
    """What the run of the same user serves at a socket, the arena's descriptor, the connection.

    Raises:
        NoAnswer: its process does not answer in this time.
        NotServed: there is no socket, or it is stale, or the run has just ended.
        ArenaError: the run refuses, with a reason; or it is another program's or user's.
    """
    with _asked(path, timeout_s, ATTACH) as connection:
        begin, fds, _, _ = socket.recv_fds(connection, 1, 1)
        if not begin:
            raise NotServed(f"the run that served {path} has just ended")
        try:
            with connection.makefile("rb") as file:
                answer = _fields(begin + file.readline(MAX_BYTES), "ok")
                if "error" in answer:
                    raise RunError(answer["error"])
                if answer.get("version") != version("mlxhog") or not fds:
                    raise RunError("it is of another version of mlxhog")
                # A pickle, as processes of one user send each other.
                about = pickle.loads(file.read(answer["bytes"]))
            os.set_inheritable(fds[0], False)
            return about, fds[0], connection.dup()
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, RunError | pickle.UnpicklingError | EOFError):
                text = f"{path} serves no run that can be attached here: {error}"
                raise ArenaError(text) from error
            raise


def ask(directory: Path, request: str, *, timeout_s: float = ANSWER_S, **fields: Any) -> Any:
    """Send a request with fields to the supervisor of a run; returns the fields of the answer.

    Raises:
        RunError: the run is not running, or does not answer.
        Refused: the run refused, with a reason.
    """
    try:
        with _asked(socket_path(directory), timeout_s, request, **fields) as connection:
            reply = connection.makefile("rb").readline()
    except NotServed as error:
        raise RunError(
            f"the run {directory} is not running, so no process takes the request {request!r}; "
            f"resume it: mlxhog train --resume {quoted(directory)}"
        ) from error
    except ArenaError as error:
        raise RunError(f"cannot ask the run {directory}: {error}") from error
    if not reply.endswith(b"\n"):
        raise RunError(f"the run {directory} has ended before it answered the request {request!r}")
    answer = _fields(reply, "ok")
    if not answer.pop("ok"):
        raise Refused(answer["error"], answer["exit_code"])
    return answer


def _fields(line: bytes, key: str) -> dict[str, Any]:
    """Read one line; a `RunError` says why it is not a JSON object with this key."""
    try:
        if key == "request" and len(line) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        fields = plain_json.loads(line)
        if isinstance(fields, dict) and key in fields:
            return fields
        raise ValueError("it is other JSON")
    except ValueError as error:
        raise RunError(f"a line is not a JSON object with the key {key!r}: {error}") from error


# -- the socket file -----------------------------------------------------------------------------


def socket_path(directory: Path) -> Path:
    """Return the path of the socket of a run directory, which need not exist.

    It is in it, unless the path is too long for a socket or its disk has none: then it is the
    stand-in on the local disk. An `ArenaError` says that this cannot be made or used.
    """
    inside = directory.absolute() / "socket"
    is_short = len(os.fsencode(inside)) <= SOCKET_PATH_BYTES
    if is_short and os.path.lexists(inside):
        return inside
    try:
        other = stand_in(inside, make=not is_short)
    except EnvironmentLacks as error:
        if is_short:
            return inside
        raise ArenaError(str(error)) from error
    return inside if is_short and not other.exists() else other


def peer_uid(connection: socket.socket) -> int:
    """User id of the process at the other end."""
    if sys.platform == "darwin":
        raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
        return int(struct.unpack_from("=2I", raw)[1])
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
