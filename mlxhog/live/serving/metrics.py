"""Counters and gauges of a server, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from mlxhog.live.serving.engine_thread import EngineThread

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of the answers, and gauges that look at the engine when they are read.

    Args:
        engine: where answers come from.
    """

    def __init__(self, engine: EngineThread) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mlxhog_requests",
            "HTTP requests by path and status.",
            ["path", "status"],
            registry=self._registry,
        )
        self.tokens = Counter(
            "mlxhog_tokens", "Tokens read and written.", ["kind"], registry=self._registry
        )
        self.answers = Counter(
            "mlxhog_answers",
            "Answers by why they ended: stop, length, document_end, cancelled or error.",
            ["reason"],
            registry=self._registry,
        )
        self.first_token = Histogram(
            "mlxhog_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("answers_running", "Answers being written.", lambda: engine.n_running),
            ("answers_waiting", "Answers waiting for a place.", lambda: engine.n_waiting),
            ("sessions", "Sessions kept.", lambda: engine.n_sessions),
            ("weights_version", "Updates in the weights.", lambda: engine.loaded.version),
            ("weights_newest", "Updates in the newest weights.", lambda: engine.newest),
            ("weights_age_seconds", "Age of the weights.", lambda: engine.loaded.age_s),
            ("weights_loads", "Times newer weights were taken.", lambda: engine.n_loads),
            ("run_is_training", "1 while the run trains.", lambda: not engine.ended),
        )
        for name, what, value in gauges:
            Gauge(f"mlxhog_{name}", what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
