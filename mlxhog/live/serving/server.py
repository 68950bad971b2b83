"""Run the HTTP server until a signal ends it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from mlxhog.base.app_server import AppServer
from mlxhog.base.http_server import listen, url_of
from mlxhog.decoding.model import Model
from mlxhog.live.serving.app import Api
from mlxhog.live.serving.config import ServeConfig, key_of, origins_of
from mlxhog.live.serving.engine_thread import EngineThread
from mlxhog.report.views import Tell

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

    `on_ready` is called when requests are answered, with the URL, the served model, and its thread;
    `say` with a message if a run is waited for.

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
            server = AppServer(
                Api(engine, served, config, key, origins),
                lambda: on_ready(f"{url_of(listener)}/v1", served, engine),
                lambda: engine.died is not None,
                limit_concurrency=max(MOST_CONNECTIONS, 2 * engine.most_answers),
            )
            server.run(sockets=[listener])
            if engine.died is not None:
                raise engine.died
        finally:
            sys.setswitchinterval(before)
            engine.stop()
