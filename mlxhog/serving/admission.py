"""Who may use a server, and what the head and the body of a request may cost."""

from __future__ import annotations

import asyncio
import hmac

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.types import Scope

from mlxhog.serving.config import is_own
from mlxhog.serving.requests import Refused

MOST_BODY_BYTES = 1_000_000
MOST_HEADERS = 100
BODY_S = 30.0
"""How long a client may take to send the body of a request."""

_OPEN = frozenset({"/health"})
"""What needs no key: it tells whether the server is well, and no text of anyone."""

_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Admission:
    """Decides by the head of a request whether it is read any further.

    Without a key everything on this machine may use the server, but for web pages: a browser would
    send their requests here as well as those of the user's own programs.

    Args:
        host: the address the server listens on.
        key: what clients have to send; None is nothing.
    """

    def __init__(self, host: str, key: str | None) -> None:
        self._key = None if key is None else key.encode()
        self._names = _OWN_NAMES | {host.lower()} if is_own(host) else None

    def check(self, scope: Scope) -> None:
        """Check a request of ASGI.

        Raises:
            Refused: it has too many headers, lacks the key, or comes from a web page.
        """
        if len(scope["headers"]) > MOST_HEADERS:
            raise Refused(
                f"{len(scope['headers'])} headers; at most {MOST_HEADERS} are read", status=431
            )
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._key is None:
            self._check_origin(headers)
        elif scope["path"] not in _OPEN:
            scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self._key):
                raise Refused(
                    "no API key, or a wrong one; send the server's as Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                )

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._names is not None and host and _hostname(host) not in self._names:
            # A web page's own name may be made to point here (DNS rebinding).
            raise Refused(f"this server is not {host[:100]}; use its own address", status=421)
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != host:
            raise Refused(
                f"web pages of {origin[:100]} may not use this server; with an API key they may",
                status=403,
            )


async def read_body(http: HTTPRequest) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: it is too long, or does not come.
    """
    too_long = Refused(f"the body has more than {MOST_BODY_BYTES:,} bytes", status=413)
    length = http.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > MOST_BODY_BYTES:
        raise too_long
    pieces, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in http.stream():
                pieces.append(piece)
                size += len(piece)
                if size > MOST_BODY_BYTES:
                    raise too_long
    except TimeoutError:
        raise Refused(f"the body did not come within {BODY_S:.0f} s", status=408) from None
    except ClientDisconnect:
        raise Refused("the client has gone", status=499) from None
    return b"".join(pieces)


def _hostname(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
