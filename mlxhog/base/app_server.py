"""Run an ASGI application until a signal ends it."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from mlxhog.base.http_server import report_full_descriptors_once
from mlxhog.base.interrupts import SIGNALS

GRACE_S = 5  # seconds for answers to complete after the request to end

MAX_HEAD_BYTES = 65_536


class AppServer(uvicorn.Server):
    """A server that ends on a signal or when `is_over`; a second signal ends it at once.

    `on_started` is called when requests are answered, `is_over` ten times a second, and `on_ending`
    before answers complete; `settings` are those of `uvicorn.Config`.
    """

    def __init__(
        self,
        app: Any,
        on_started: Callable[[], object] = lambda: None,
        is_over: Callable[[], bool] = lambda: False,
        on_ending: Callable[[], object] = lambda: None,
        **settings: Any,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_graceful_shutdown=GRACE_S,
                **settings,
            )
        )
        self._on_started, self._is_over, self._on_ending = on_started, is_over, on_ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and call `on_started`."""
        report_full_descriptors_once()
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Call `on_ending`, and give answers `GRACE_S` to complete."""
        self._on_ending()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; called ten times a second."""
        return await super().on_tick(counter) or self._is_over()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the block runs."""

        def end(*_: Any) -> None:
            self.force_exit, self.should_exit = self.should_exit, True

        before = {
            number: signal.signal(number, end)
            for number in SIGNALS
            # Ignored, for example, under nohup; or handled by a program around Python.
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
