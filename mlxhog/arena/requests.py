"""Requests to the supervisor of a run, from other processes of the same user, over a Unix socket.

A client sends one JSON object in one line and gets one JSON object in one line:

    {"request": "leave", "worker": 2}
    {"ok": true, "message": "worker 2 (torch:cpu) finishes its step and leaves"}
    {"ok": false, "error": "no worker 9; ...", "exit_code": 2}

The supervisor looks for requests between its other duties and never waits for a client: a line may
arrive in pieces over several looks, and a client that is silent for too long is dropped. The owner
of the server defines the requests and carries them out.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxhog.arena.handover import listen, peer_uid, remove, socket_path
from mlxhog.arena.process import monotonic_ns
from mlxhog.errors import RunError
from mlxhog.files import plain_json

SOCKET = "requests"
MOST_BYTES = 1 << 16  # in one line
MOST_CLIENTS = 16
SILENT_S = 5.0  # a client that has not sent a whole line after this time is dropped
SEND_S = 1.0  # how long the run waits for a client to read its answer
ANSWER_S = 60.0  # how long a client waits; a checkpoint of a large model may take long


class Refused(RunError):
    """A run refuses a request; the client raises it with the run's message and exit code."""

    def __init__(self, message: str, exit_code: int = RunError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Request:
    """One request that waits for its answer.

    Attributes:
        name: name of the request.
        fields: its other fields.
    """

    def __init__(self, connection: socket.socket, fields: dict[str, Any]) -> None:
        self._connection = connection
        self.name = str(fields.pop("request"))
        self.fields = fields

    def answer(self, **fields: Any) -> None:
        """Send the result, and hang up; it is not an error if the client has disconnected."""
        _send(self._connection, {"ok": True, **fields})

    def refuse(self, error: RunError) -> None:
        """Send the reason of a refusal, and hang up."""
        _send(self._connection, _refusal(error))

    def hang_up(self) -> None:
        """Hang up without an answer, since the run is ending."""
        self._connection.close()


class RequestServer:
    """Takes requests at the socket of a run, until closed.

    Concurrency: used by one thread; no method waits for a request.
    """

    def __init__(self, directory: Path) -> None:
        """Listen at the socket of a run directory; the caller holds the run's lock.

        Raises:
            ArenaError: a living process serves at this path, or the path is unusable.
        """
        self.path = socket_path(directory, SOCKET)
        self._listener = listen(self.path)
        self._listener.setblocking(False)
        self._clients: dict[socket.socket, tuple[bytes, int]] = {}

    def take(self) -> list[Request]:
        """The requests that have arrived completely; the caller must answer each."""
        self._accept()
        requests = []
        for client in list(self._clients):
            line = self._line(client)
            if line is None:
                continue
            del self._clients[client]
            try:
                requests.append(Request(client, _fields(line)))
            except RunError as error:
                _send(client, _refusal(error))
        return requests

    def close(self) -> None:
        """Hang up, stop listening and remove the socket."""
        if self._listener.fileno() < 0:
            return
        for client in (*self._clients, self._listener):
            client.close()
        self._clients.clear()
        remove(self.path)

    def _accept(self) -> None:
        while len(self._clients) < MOST_CLIENTS:
            try:
                client, _ = self._listener.accept()
            except OSError:  # no client waits, or it has disconnected
                return
            client.setblocking(False)
            try:
                is_ours = peer_uid(client) == os.getuid()
            except OSError:
                is_ours = False
            if is_ours:
                self._clients[client] = (b"", monotonic_ns())
            else:
                client.close()

    def _line(self, client: socket.socket) -> bytes | None:
        """A client's line when it is complete; disconnected and silent clients are dropped."""
        text, since_ns = self._clients[client]
        try:
            more = client.recv(MOST_BYTES + 1 - len(text))
        except BlockingIOError:
            if monotonic_ns() - since_ns > SILENT_S * 1e9:
                self._drop(client)
            return None
        except OSError:
            more = b""
        text += more
        line, end, _ = text.partition(b"\n")
        if end:
            return line
        if len(text) > MOST_BYTES:
            return text  # too long; `_fields` refuses it with a message
        if not more:
            self._drop(client)
        else:
            self._clients[client] = (text, since_ns)
        return None

    def _drop(self, client: socket.socket) -> None:
        del self._clients[client]
        client.close()

    def __enter__(self) -> RequestServer:
        """Serve until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.close()


def ask(directory: Path, request: str, *, timeout_s: float = ANSWER_S, **fields: Any) -> Any:
    """Send a request to the supervisor of a running run, and wait for the answer.

    Args:
        directory: directory of the run.
        request: name of the request.
        timeout_s: how long to wait for the answer.
        fields: its other fields, as JSON values.

    Returns:
        The fields of the answer.

    Raises:
        RunError: the run is not running, or does not answer.
        Refused: the run refused, with a reason.
    """
    path = socket_path(directory, SOCKET)
    line = plain_json.dumps({"request": request, **fields}) + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(os.fspath(path))
            if peer_uid(connection) != os.getuid():
                raise RunError(f"the socket {path} is served by another user")
            connection.sendall(line)
            reply = _receive(connection)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise RunError(
                f"the run {directory} is not running, so no process takes the request {request!r}; "
                f"resume it: mlxhog train --resume {directory}"
            ) from error
        except TimeoutError as error:
            raise RunError(
                f"the run {directory} has not answered in {timeout_s:g} s; is it stopped (Ctrl-Z)?"
            ) from error
        except OSError as error:
            raise RunError(f"cannot ask the run {directory}: {error}") from error
    if not reply:
        raise RunError(f"the run {directory} has ended before it answered the request {request!r}")
    answer = _fields(reply, "ok")
    if answer.pop("ok") is not True:
        code = answer.get("exit_code")
        raise Refused(str(answer.get("error")), code if isinstance(code, int) else 2)
    return answer


def _receive(connection: socket.socket) -> bytes:
    """The bytes of the other side until the end of its line, or until it hangs up."""
    text = b""
    while not text.endswith(b"\n") and len(text) <= MOST_BYTES:
        more = connection.recv(MOST_BYTES)
        if not more:
            break
        text += more
    return text


def _fields(line: bytes, key: str = "request") -> dict[str, Any]:
    """Read one line.

    Raises:
        RunError: it is too long, not a JSON object, or lacks the key.
    """
    if len(line) > MOST_BYTES:
        raise RunError(f"a line has more than {MOST_BYTES:,} bytes; send one short line of JSON")
    try:
        fields = plain_json.loads(line)
    except ValueError as error:
        raise RunError(f"a line is not JSON: {error}; send one JSON object") from error
    if not isinstance(fields, dict) or key not in fields:
        raise RunError(f"a line is not a JSON object with the key {key!r}")
    return fields


def _refusal(error: RunError) -> dict[str, Any]:
    return {"ok": False, "error": str(error), "exit_code": error.exit_code}


def _send(connection: socket.socket, fields: Mapping[str, Any]) -> None:
    """Send one line to a client that reads it within `SEND_S`, and hang up."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(SEND_S)
        connection.sendall(plain_json.dumps(fields) + b"\n")
