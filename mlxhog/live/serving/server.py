"""Run the HTTP server until a signal ends it; drop slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlxhog.live.serving.app import Api
from mlxhog.live.serving.config import ServeConfig, key_of
from mlxhog.live.serving.engine_thread import EngineThread, Served
from mlxhog.machine.http_server import listen, say_once_where_connections_wait, url_of
from mlxhog.machine.interrupts import SIGNALS
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
    on_ready: Callable[[str, Served, EngineThread], None],
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
    with contextlib.closing(listen(config.host, config.port)) as listener:
        engine = EngineThread(model, config, say)
        try:
            served = engine.wait()

            def on_started() -> None:
                on_ready(f"{url_of(listener)}/v1", served, engine)

            before = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_S)
            try:
                asyncio.run(_run(engine, Api(engine, served, config, key), listener, on_started))
            finally:
                sys.setswitchinterval(before)
            if engine.died is not None:
                raise engine.died
        finally:
            engine.stop()


async def _run(
    engine: EngineThread, api: Api, listener: socket.socket, on_started: Callable[[], None]
) -> None:
    server = _Server(
        uvicorn.Config(
            api,
            http=PatientProtocol,
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
    await server.serve(sockets=[listener])


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


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that drops clients that neither send their request nor read their answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the client."""
        super().connection_made(transport)
        self._waited_s = 0.0
        self.loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        self._waited_s = self._waited_s + LOOK_S if self._is_waiting() else 0.0
        if self._waited_s >= PATIENCE_S:
            self.transport.abort()
            return
        self.loop.call_later(LOOK_S, self._look)

    def _is_waiting(self) -> bool:
        """Whether the server waits for the client; between requests uvicorn has its own limit."""
        if self.flow.write_paused:
            return True
        return self.timeout_keep_alive_task is None and self.conn.their_state in (
            h11.IDLE,
            h11.SEND_BODY,
        )
