"""HTTP servers on this machine: their address, and which requests they answer."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.machine.processes import NO_DESCRIPTORS, descriptors_text

OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine in a Host header."""


class ForeignRequest(Exception):
    """What a browser sends for a page of another site.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def say_once_where_connections_wait() -> None:
    """Let the running event loop say in one line that no more connections can be taken.

    By itself it prints a traceback for each connection that waits, a thousand times a second.
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
            # else it is a second try of the loop's own to accept, after the server has closed
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handle)


def check_names(headers: Mapping[bytes, bytes], names: frozenset[str] | None) -> None:
    """Refuse requests of web pages: those under foreign names, and those from foreign pages.

    Args:
        headers: of the request, with names in lower case.
        names: of the server, "" where a request need not name it; None takes every name.

    Raises:
        ForeignRequest: it is one.
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if names is not None and _hostname(host) not in names:
        # A web page's own name may be made to point here (DNS rebinding).
        raise ForeignRequest(f"this server is not {host[:100]}; use its own address", 421)
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if origin and origin.partition("://")[2] != host:
        raise ForeignRequest(f"web pages of {origin[:100]} may not use this server", 403)


def _hostname(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None where it is no name at all."""
    try:
        return urlsplit(f"//{host}").hostname or host
    except ValueError:  # such as half an address of IPv6
        return None


def is_own(host: str) -> bool:
    """Return whether an address can be reached from this machine alone.

    Raises:
        ConfigError: there is no such address.
    """
    return all(
        ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
        for *_, address in _resolved(host, 0)
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: there is no such address, or another program listens there.
        EnvironmentLacks: the system does not let this user have the port.
    """
    family, kind, protocol, _, address = _resolved(host, port)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # The port of a server that ended seconds ago is free; that of one that runs is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # from now on nobody who knows the address is refused
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use by another program; choose another with --port, "
                "or --port 0 for any that is free"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host} is no address of this machine") from error
        raise EnvironmentLacks(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket, without a path."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _resolved(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return what `socket.getaddrinfo` finds."""
    try:
        return list(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: no such address; 127.0.0.1 is this machine alone, 0.0.0.0 all of its "
            "networks"
        ) from error
