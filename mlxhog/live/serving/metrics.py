"""Counters and gauges of a server, in Prometheus' format."""

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
    """Counters of the answers, and gauges that read the engine's values.

    Args:
        engine: the thread that writes the answers.
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
            "Answers by reason of their end: stop, length, document_end, cancelled or error.",
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
            ("answers_waiting", "Waiting answers.", lambda: engine.n_waiting),
            ("sessions", "Stored sessions.", lambda: engine.n_sessions),
            ("weights_version", "Updates in the weights.", lambda: engine.loaded.version),
            ("weights_newest", "Updates in the newest weights.", lambda: engine.newest),
            ("weights_age_seconds", "Age of the weights.", lambda: engine.loaded.age_s),
            ("weights_loads", "Loads of newer weights.", lambda: engine.n_loads),
            ("run_is_training", "1 while the run trains.", lambda: not engine.ended),
        )
        for name, about, value in gauges:
            Gauge(f"mlxhog_{name}", about, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self._registry)
