"""A board: a page on this machine that follows one run and has buttons to control it.

The page is drawn by the same script as the report. Every client that reaches the port may read it;
a button needs the token that was printed in the terminal. Pages of other sites reach the port too,
so requests with a host name other than this machine's are refused.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from html import escape
from time import monotonic
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxhog.arena import requests
from mlxhog.errors import MlxhogError
from mlxhog.files import plain_json
from mlxhog.files.quantities import format_bytes, format_count, format_number
from mlxhog.machine.http_server import OWN_NAMES, ForeignRequest, check_names
from mlxhog.report import page
from mlxhog.report.history import workers_of
from mlxhog.report.record import RunRecord
from mlxhog.report.run_page import curves, glance, head, known_facts, points_for, section

LOOK_S = 1.0
"""Seconds between two reads of the files; a run writes its metrics every two seconds."""
SILENT_LOOKS = 15
"""Reads without a change after which a stream gets a comment, which detects a lost client."""
ASKS = {
    "checkpoint": ("Save a checkpoint", ""),
    "sample": ("Write a sample", ""),
    "stop": ("Stop the run", "Stop the run? It finishes its step and saves a checkpoint."),
}
"""Request -> the label of its button, and the question before it is sent."""
HEADER = ("worker", "backend", "state", "steps", "tok/s", "staleness mean / max", "memory")


T = TypeVar("T")


class Board:
    """The application that shows one run.

    Args:
        record: record of the run.
        token: token that requests need.
        ending: whether the server is about to exit, so that streams end.

    Concurrency: for one event loop; files are read in a thread, one at a time.
    """

    def __init__(self, record: RunRecord, token: str, ending: Callable[[], bool]) -> None:
        self.record, self._token, self._ending = record, token.encode(), ending
        self._lock = asyncio.Lock()
        self._looked_s = -LOOK_S
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/data", self._data),
                Route("/events", self._events),
                Route("/ask/{what}", self._ask, methods=["POST"]),
            ],
            middleware=[Middleware(OwnNameOnly)],
        )

    async def _read(self, what: Callable[[], T]) -> T:
        """Refresh the record, then return the result of a function of it."""
        async with self._lock:
            return await asyncio.to_thread(self._refreshed, what)

    def _refreshed(self, what: Callable[[], T]) -> T:
        if monotonic() - self._looked_s >= LOOK_S / 2:
            self.record.refresh()
            self._looked_s = monotonic()
        return what()

    async def _page(self, request: Request) -> Response:
        text = await self._read(lambda: board_page(self.record))
        return HTMLResponse(text, headers={"Cache-Control": "no-store"})

    async def _data(self, request: Request) -> Response:
        def whole() -> bytes:
            record = self.record
            run = {
                **record.to_json(points_for([record])),
                **glance(record),
                "told": record.n_events,
            }
            return plain_json.dumps({"runs": [run], "now": now(record), "inks": page.inks()})

        return Response(await self._read(whole), media_type="application/json")

    async def _events(self, request: Request) -> Response:
        query = request.query_params
        try:
            rows, starts, n_events = (int(query[name]) for name in ("rows", "starts", "told"))
        except (KeyError, ValueError):
            return JSONResponse({"error": "wanted ?rows=N&starts=N&told=N"}, status_code=400)
        return StreamingResponse(
            self._stream(max(rows, 0), starts, max(n_events, 0)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _stream(self, rows: int, starts: int, n_events: int) -> AsyncIterator[bytes]:
        """Yield the lines of metrics and the events that a client does not have yet."""
        client, silent = _Client(rows, starts, n_events), 0
        yield b"retry: 2000\n\n"
        while not self._ending():
            text = await self._read(lambda: client.news(self.record))
            if text is not None:
                silent = 0
                yield b"data: " + text + b"\n\n"
            elif (silent := silent + 1) % SILENT_LOOKS == 0:
                yield b": still here\n\n"
            for _ in range(4):
                if not self._ending():
                    await asyncio.sleep(LOOK_S / 4)

    async def _ask(self, request: Request) -> Response:
        """Pass the request of a button on to the run, if the token is right."""
        what = request.path_params["what"]
        sent = request.headers.get("x-mlxhog-token", "").encode()
        if not hmac.compare_digest(sent, self._token):
            error = "the token is missing or wrong; it is in the link that mlxhog board printed"
            return JSONResponse({"error": error}, status_code=403)
        if what not in ASKS:
            error = f"no request {what[:40]!r}; expected one of {', '.join(ASKS)}"
            return JSONResponse({"error": error}, status_code=404)
        try:
            answer = await asyncio.to_thread(requests.ask, self.record.run.directory, what)
        except MlxhogError as error:
            return JSONResponse({"error": str(error)}, status_code=409)
        message = answer.get("message", f"saved {answer.get('path')}")
        return JSONResponse({"message": str(message)})


class OwnNameOnly:
    """Refuses requests of other sites' pages: foreign host names and origins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] == "http":
            try:
                check_names(dict(scope["headers"]), OWN_NAMES)
            except ForeignRequest:
                response = JSONResponse(
                    {"error": "this board answers at its own address only"}, status_code=421
                )
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def now(record: RunRecord) -> dict[str, Any]:
    """Return the numbers that a board shows beside its curves."""
    return {
        "state": record.state,
        "notes": record.notes,
        "facts": known_facts(record),
        "table": [_cells(worker) for worker in workers_of(record.history.newest)],
        **glance(record),
    }


def _cells(worker: Mapping[str, Any]) -> list[str]:
    def spelled(name: str, spell: Callable[[float], str]) -> str:
        value = worker.get(name)
        return spell(value) if isinstance(value, int | float) else "-"

    return [
        str(worker.get("slot", "?"))[:10],
        str(worker.get("backend", "?"))[:40],
        str(worker.get("state", "?"))[:20],
        spelled("steps", format_number),
        spelled("tokens_per_s", format_count),
        f"{spelled('mean_staleness', '{:.1f}'.format)} / {spelled('max_staleness', format_number)}",
        spelled("memory_bytes", format_bytes),
    ]


class _Client:
    """The state of one client: number of lines of metrics, of starts of their file, of events."""

    def __init__(self, rows: int, starts: int, n_events: int) -> None:
        self._rows, self._starts, self._n_events = rows, starts, n_events
        self._now: dict[str, Any] = {}

    def news(self, record: RunRecord) -> bytes | None:
        """Return the data that the page does not have yet, as JSON; None if there are none."""
        history, state = record.history, now(record)
        if (
            history.starts != self._starts
            or len(history) < self._rows
            or record.n_events < self._n_events
        ):
            return b'{"reset": true}'
        fresh = record.n_events - self._n_events
        if len(history) == self._rows and not fresh and state == self._now:
            return None
        lines = record.lines(points=len(history) + 1, begin=self._rows)
        newest = record.events[max(len(record.events) - fresh, 0) :]
        events = [event.to_json() for event in newest]
        self._rows, self._n_events, self._now = len(history), record.n_events, state
        news = {"events": events, "told": record.n_events, "now": state}
        return plain_json.dumps({"lines": lines, **news, **record.tables()})


def board_page(record: RunRecord) -> str:
    """Return the page; its script fetches the data."""
    name = record.run.name
    buttons = "".join(
        f'<button type="button" data-ask="{what}" data-sure="{escape(sure)}">{escape(text)}'
        "</button>"
        for what, (text, sure) in ASKS.items()
    )
    heads = "".join(f'<th class="t" scope="col">{escape(title)}</th>' for title in HEADER)
    tables = f"""<div id="now" hidden><h2>Workers now</h2>
<div class="scroll cards"><table><thead><tr>{heads}</tr></thead><tbody id="table"></tbody></table>
</div></div>
<h2>Run and machine</h2>
<div class="scroll"><table><tbody id="facts"></tbody></table></div>"""
    body = f"""<h1>{escape(name)}</h1>
{head(record, 0)}
<div id="notes"></div>
<div class="bar live" id="asks">{buttons}
<label id="token-field">token <input id="token" autocomplete="off" spellcheck="false"
 aria-describedby="token-help"> <span class="when" id="token-help">from the link that
 mlxhog board printed</span></label></div>
<p id="told" class="note" role="status" aria-live="polite"></p>
{curves()}
{section(record, 0, tables)}
<footer>This page follows the run while <code>mlxhog board</code> runs. Charts: uPlot, MIT licence.
</footer>"""
    return page.document(
        name,
        body,
        styles=page.chart_styles(),
        scripts=[*page.chart_scripts(), page.asset("board.js")],
        talks=True,
    )
