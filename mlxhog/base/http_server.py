"""HTTP servers on this machine: addresses, and protection against foreign web pages."""

import asyncio
import errno
import ipaddress
import re
import socket
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from mlxhog.base.processes import NO_DESCRIPTORS, descriptors_text
from mlxhog.base.quantities import split_host
from mlxhog.errors import ConfigError, EnvironmentLacks

ANSWERS_S = 0.2  # a server on this machine answers within this
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})  # names of this machine in a Host header


class ForeignRequest(Exception):
    """A request of another site's web page; its answer has the `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def report_full_descriptors_once() -> None:
    """Report once, in a line, that the running event loop can accept no more connections.

    asyncio prints a traceback for each waiting connection, a thousand times a second.
    """
    has_said = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal has_said
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
            if not has_said:
                text = f"no more files can be opened, so connections wait: {descriptors_text()}"
                print(text, file=sys.stderr, flush=True)
            has_said = True
        elif not (has_said and isinstance(error, ValueError) and "handle" in context):
            # else asyncio itself retries `accept` after the server has closed
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handle)


def check_names(
    headers: Mapping[bytes, bytes], names: frozenset[str] | None, origins: Collection[str] = ()
) -> None:
    """Raise ForeignRequest for a Host or Origin of another site's web page.

    Args:
        headers: headers of the request, names in lower case.
        names: accepted names of the server; "" accepts a request without Host; None accepts any.
        origins: accepted origins besides the server's own.
    """
    host, name = headers.get(b"host", b"").decode("latin-1").lower(), ""
    is_host = not host
    with suppress(ValueError):  # evil@localhost, localhost#evil: some programs read another host
        name, is_host = split_host(host)[0], True
    if not is_host or (names is not None and name not in names):
        # The site of a web page may let its own name resolve to this machine (DNS rebinding).
        raise ForeignRequest(f"this server is not {host[:100]}; use its own address", 421)
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if origin and origin not in (f"http://{host}", f"https://{host}", *origins):
        raise ForeignRequest(f"web pages of {origin[:100]} may not use this server", 403)


def is_own(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    return all(
        ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
        for *_, address in _addresses(host, 0)
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: there is no such address, or another program listens there.
        EnvironmentLacks: the system does not allow this user to use the port.
    """
    family, kind, protocol, _, address = _addresses(host, port)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "darwin" and port:
            _refuse_answered(address)
        # The port of a server that ended seconds ago counts as free, a running server's does not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # from now on clients can connect, before the server accepts
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use by another program; choose another, or 0 for any "
                "free port"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"{host} is not an address of this machine") from error
        raise EnvironmentLacks(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose one above 1023"
        ) from error
    return listener


def _refuse_answered(address: tuple[Any, ...]) -> None:
    """Raise EADDRINUSE if a server answers there.

    With SO_REUSEADDR, BSDs let one listen on all addresses beside another's on one of them, and the
    more specific one then gets the clients of this machine.
    """
    try:
        socket.create_connection(address[:2], timeout=ANSWERS_S).close()
    except OSError:
        return
    raise OSError(errno.EADDRINUSE, "")


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket, without a path."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return `socket.getaddrinfo` of a plausible name; it reads some odd ones as addresses."""
    try:
        if not re.fullmatch(r"[\w.:-]+(%[\w.-]+)?", host, re.ASCII):  # fe80::1%en0 names a link
            raise OSError
        return list(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: no such address; 127.0.0.1 accepts this machine only, 0.0.0.0 all of "
            "its networks"
        ) from error
