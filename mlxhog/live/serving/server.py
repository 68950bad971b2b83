"""Run the HTTP server until a signal ends it."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from mlxhog.base.http_server import listen, say_once_where_connections_wait, url_of
from mlxhog.base.interrupts import SIGNALS
from mlxhog.decoding.model import Model
from mlxhog.live.serving.app import Api
from mlxhog.live.serving.config import ServeConfig, key_of, origins_of
from mlxhog.live.serving.engine_thread import EngineThread
from mlxhog.report.views import Tell

GRACE_S = 5
"""Seconds for answers to complete after the request to end."""

MOST_HEAD_BYTES = 65_536
MOST_CONNECTIONS = 200
"""The limit is this or twice `most_answers`, whichever is larger; above it uvicorn answers 503."""

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
        engine, before = EngineThread(model, config, say), sys.getswitchinterval()
        try:
            served = engine.wait()
            sys.setswitchinterval(_SWITCH_S)
            server = _Server(
                engine,
                Api(engine, served, config, key, origins),
                lambda: on_ready(f"{url_of(listener)}/v1", served, engine),
            )
            server.run(sockets=[listener])
            if engine.died is not None:
                raise engine.died
        finally:
            sys.setswitchinterval(before)
            engine.stop()


class _Server(uvicorn.Server):
    """A server that ends with its engine or on a signal; a second signal ends it at once."""

    def __init__(self, engine: EngineThread, api: Api, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                http="h11",
                ws="none",
                lifespan="off",
                loop="asyncio",
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
        self._engine, self._on_started = engine, on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and call `on_started`."""
        say_once_where_connections_wait()
        await super().startup(sockets)
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; called ten times a second."""
        return await super().on_tick(counter) or self._engine.died is not None

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
