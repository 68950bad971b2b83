"""Run the HTTP server until a signal ends it; drop slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxhog.base.http_server import listen, say_once_where_connections_wait, url_of
from mlxhog.base.interrupts import SIGNALS
from mlxhog.decoding.model import Model
from mlxhog.live.serving.app import Api
from mlxhog.live.serving.config import ServeConfig, key_of, origins_of
from mlxhog.live.serving.engine_thread import EngineThread
from mlxhog.report.views import Tell

PATIENCE_S = 30.0
"""Longest time for a client to send a request, or to read its answer, in seconds."""

GRACE_S = 5
"""Seconds for answers to complete after the request to end."""

MOST_HEAD_BYTES = 65_536
MOST_CONNECTIONS = 200
"""The limit is this or twice `most_answers`, whichever is larger; above it uvicorn answers 503."""

LOOK_S = 1.0
"""Interval between two checks of a client, in seconds."""

_SWITCH_S = 0.0005
"""Switch interval of threads, so that the event loop waits less; a tenth of Python's default."""


def serve(
    model: str,
    config: ServeConfig,
    on_ready: Callable[[str, Model, EngineThread], None],
    say: Tell = lambda message: None,
) -> None:
    """Serve a run or a checkpoint until a signal ends it.

    Args:
        model: a run (a path, a name below `config.out`, or `latest`), or a checkpoint.
        config: options of the server.
        on_ready: called when requests are answered, with the URL, the served model, and its
            thread.
        say: called with a message when the wait for a run begins.

    Raises:
        ConfigError: the address cannot be used, or needs a key.
        MlxhogError: the model cannot be opened; as for `mlxhog.live.opening.open_source`.
    """
    key = key_of(config)
    origins = origins_of(config, key)
    with contextlib.closing(listen(config.host, config.port)) as listener:
        engine = EngineThread(model, config, say)
        try:
            served = engine.wait()

            def on_started() -> None:
                on_ready(f"{url_of(listener)}/v1", served, engine)

            before = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_S)
            try:
                api = Api(engine, served, config, key, origins)
                asyncio.run(_run(engine, api, listener, on_started))
            finally:
                sys.setswitchinterval(before)
            if engine.died is not None:
                raise engine.died
        finally:
            engine.stop()


async def _run(
    engine: EngineThread, api: Api, listener: socket.socket, on_started: Callable[[], None]
) -> None:
    patience = Patience(api)
    server = _Server(
        uvicorn.Config(
            patience,
            http="h11",
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=max(MOST_CONNECTIONS, 2 * engine.most_answers),
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    server.engine, server.on_started = engine, on_started
    say_once_where_connections_wait()
    watch = asyncio.create_task(patience.watch())
    with contextlib.closing(patience.listening(listener)) as accepting:
        await server.serve(sockets=[accepting])
    watch.cancel()


class _Server(uvicorn.Server):
    """A server that ends with its engine or on a signal; a second signal ends it at once."""

    engine: EngineThread
    on_started: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and call `on_started`."""
        await super().startup(sockets)
        self.on_started()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; called ten times a second."""
        return await super().on_tick(counter) or self.engine.died is not None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the block runs."""
        before = {
            number: signal.signal(number, self._end)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # ignored, for example, under nohup
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, *_: Any) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


Address = tuple[str, int]


class Patience:
    """An application that drops clients that neither send a request nor read their answer.

    A server of uvicorn waits for them without end. `app.read_body` has a limit of its own.

    Args:
        app: the application that answers.

    Concurrency: for one event loop.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._connections: dict[Address, socket.socket] = {}
        self._waiting: dict[Address, float] = {}  # since when the server waits for a client

    def listening(self, listener: socket.socket) -> socket.socket:
        """Return another object for a listening socket, which notes the connections it accepts."""
        accepting = _Listener(fileno=os.dup(listener.fileno()))
        accepting.note = self._accepted
        return accepting

    def _accepted(self, connection: socket.socket, address: Address) -> None:
        self._connections[address] = connection
        self._waiting[address] = monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        client: Address = tuple(scope["client"])

        async def watched(message: Message) -> None:
            self._waiting[client] = monotonic()
            await send(message)  # waits while the client does not read
            self._waiting.pop(client, None)

        self._waiting.pop(client, None)
        try:
            await self._app(scope, receive, watched)
        finally:
            if client in self._connections:
                self._waiting[client] = monotonic()  # for the next request

    async def watch(self) -> None:
        """Drop clients until the task is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for client, connection in list(self._connections.items()):
                if connection.fileno() < 0:  # closed
                    del self._connections[client]
                    self._waiting.pop(client, None)
                elif monotonic() - self._waiting.get(client, monotonic()) > PATIENCE_S:
                    with contextlib.suppress(OSError):  # the client has just left
                        connection.shutdown(socket.SHUT_RDWR)  # the event loop closes it


class _Listener(socket.socket):
    """A listening socket that reports each connection."""

    note: Callable[[socket.socket, Address], None]

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        connection, address = super().accept()
        self.note(connection, address[:2])
        return connection, address
