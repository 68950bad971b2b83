"""Serving until somebody ends it: the HTTP server, patience with slow clients, signals."""

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

PATIENCE_S = 30.0
"""How long a client may take to send a request, or to read what it was sent."""

GRACE_S = 5
"""How long answers may go on after the server was asked to end."""

MOST_HEAD_BYTES = 65_536
MOST_CONNECTIONS = 200
"""Or twice the answers that may run or wait, where that is more; beyond, uvicorn answers 503."""

_LOOK_S = 1.0
_SWITCH_S = 0.0005
"""How long the engine's thread may keep the event loop waiting: a tenth of Python's own."""


def serve(
    model: str,
    config: ServeConfig,
    on_ready: Callable[[str, Served, EngineThread], None],
    say: Callable[[str], object] = lambda message: None,
) -> None:
    """Serve a run or a checkpoint until a signal ends it.

    Args:
        model: a run (a path, a name below `config.out`, or `latest`), or a checkpoint.
        config: see there.
        on_ready: called with the URL, what is served, and the thread that knows its weights, when
            requests are answered.
        say: told what is waited for before.

    Raises:
        ConfigError: the address cannot be used, or lacks a key.
        MlxhogError: the model cannot be opened; as `mlxhog.live.opening.open_source`.
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
    """Ends on every signal that ends a command, the second one at once, or with its engine."""

    engine: EngineThread
    on_started: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        self.on_started()

    async def on_tick(self, counter: int) -> bool:
        """Return whether it is time to end; asked ten times a second."""
        return await super().on_tick(counter) or self.engine.died is not None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the block runs."""
        before = {
            number: signal.signal(number, self._end)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # as under nohup
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
    """HTTP/1.1 that drops clients who neither send their request nor read their answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the client."""
        super().connection_made(transport)
        self._waited_s = 0.0
        self.loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        self._waited_s = self._waited_s + _LOOK_S if self._is_waiting() else 0.0
        if self._waited_s >= PATIENCE_S:
            self.transport.abort()
            return
        self.loop.call_later(_LOOK_S, self._look)

    def _is_waiting(self) -> bool:
        """Whether it is the client's turn; between two requests uvicorn itself keeps the time."""
        if self.flow.write_paused:
            return True
        return self.timeout_keep_alive_task is None and self.conn.their_state in (
            h11.IDLE,
            h11.SEND_BODY,
        )
