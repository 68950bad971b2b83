"""Admission to a server: API keys, own names, and limits on the head and body of a request."""

from __future__ import annotations

import asyncio
import hmac

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.types import Scope

from mlxhog.live.serving.requests import Refused
from mlxhog.machine.http_server import OWN_NAMES, ForeignRequest, check_names, is_own

MOST_BODY_BYTES = 1_000_000
MOST_HEADERS = 100
BODY_S = 30.0
"""How long a client may take to send the body of a request."""

_OPEN = frozenset({"/health"})
"""What needs no key: it tells whether the server is well, and no text of anyone."""


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
        # HTTP/1.0 need not name the host.
        self._names = OWN_NAMES | {host.lower(), ""} if is_own(host) else None

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
            try:
                check_names(headers, self._names)
            except ForeignRequest as foreign:
                advice = "; with an API key they may" if foreign.status == 403 else ""
                raise Refused(f"{foreign}{advice}", status=foreign.status) from None
        elif scope["path"] not in _OPEN:
            scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self._key):
                raise Refused(
                    "no API key, or a wrong one; send the server's as Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
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
