"""The dashboard: a live report of one run, with buttons to control it.

Its script fetches the page again and replaces what has changed. Every client that reaches the port
may read it; buttons need the token printed in the terminal. Web pages of other sites reach the
port, too, so requests with a host name other than this machine's are refused.
"""

import asyncio
import hashlib
import hmac
from html import escape
from time import monotonic

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlxhog.arena import requests
from mlxhog.base.http_server import OWN_NAMES, ForeignRequest, check_names
from mlxhog.display.record import RunRecord
from mlxhog.display.run_page import report
from mlxhog.errors import MlxhogError

POLL_S = 0.5  # least time between two reads of the files, which a run writes every two seconds
ASKS = {
    "checkpoint": ("Save a checkpoint", ""),
    "sample": ("Write a sample", ""),
    "stop": ("Stop the run", "Stop the run? It finishes its step and saves a checkpoint."),
}
"""Request -> the label of its button, and the question before it is sent."""


class Dashboard:
    """The application that shows one run.

    Concurrency: for one event loop; files are read in a thread, one at a time.
    """

    def __init__(self, record: RunRecord, token: str) -> None:
        """Show a run; its buttons need the token."""
        self.record, self._token = record, token.encode()
        self._lock = asyncio.Lock()
        self._polled_s, self._tag, self._text = -POLL_S, "", ""
        self._news: tuple[object, ...] = ()  # what the page shows
        self._routes = Starlette(
            routes=[Route("/", self._page), Route("/ask/{what}", self._ask, methods=["POST"])]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI request, unless a page of another site sends it."""
        try:
            check_names(dict(scope["headers"]), OWN_NAMES)
        except ForeignRequest:
            refusal = _error(421, "this dashboard answers at its own address only")
            await refusal(scope, receive, send)
        else:
            await self._routes(scope, receive, send)

    async def _page(self, request: Request) -> Response:
        async with self._lock:
            await asyncio.to_thread(self._refresh)
        headers = {"Cache-Control": "no-store", "ETag": self._tag}
        if request.headers.get("if-none-match") == self._tag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(self._text, headers=headers)

    def _refresh(self) -> None:
        record, history = self.record, self.record.history
        if monotonic() - self._polled_s < POLL_S:
            return
        record.refresh()
        self._polled_s = monotonic()
        written = len(history), history.newest, len(record.events)
        news = (*written, record.status, record.config, record.notes)
        if news != self._news:
            self._news, self._text = news, report([record], buttons=BUTTONS)
            self._tag = f'"{hashlib.sha256(self._text.encode()).hexdigest()[:16]}"'

    async def _ask(self, request: Request) -> Response:
        """Send the request of a button to the run, if the token is right."""
        what = request.path_params["what"]
        sent = request.headers.get("x-mlxhog-token", "").encode()
        if not hmac.compare_digest(sent, self._token):
            return _error(
                403,
                "the token is missing or wrong; it is in the link that mlxhog dashboard printed",
            )
        if what not in ASKS:
            return _error(404, f"no request {what[:40]!r}; expected one of {', '.join(ASKS)}")
        try:
            answer = await asyncio.to_thread(requests.ask, self.record.run.directory, what)
        except MlxhogError as error:
            return _error(409, str(error))
        message = answer.get("message", f"saved {answer.get('path')}")
        return JSONResponse({"message": str(message)})


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


BUTTONS = f"""<div class="bar live" id="asks" hidden>{
    "".join(
        f'<button type="button" data-ask="{what}" data-sure="{escape(sure)}">{text}</button>'
        for what, (text, sure) in ASKS.items()
    )
}</div>
<p id="told" class="note" role="status" aria-live="polite"></p>
<p id="gone" class="partial" role="status" hidden>The server of this page (mlxhog dashboard) does
not answer; trying again.</p>"""
"""The buttons, shown on a page that was opened with the token, and their answers."""
