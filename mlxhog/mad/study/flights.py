"""The runs in progress, and how far they are."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mlxhog.mad.result import Point
from mlxhog.mad.study.progress import InFlight
from mlxhog.mad.study.study import PlannedRun


@dataclass
class _Flight:
    run: PlannedRun
    worker: str
    began_s: float
    point: Point | None = None


class Flights:
    """What was begun and has not ended, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._flights)

    def begin(self, run: PlannedRun, worker: str) -> None:
        """A worker has begun a run."""
        self._flights[run.key] = _Flight(run, worker, time.monotonic())

    def evaluated(self, key: str, point: Point) -> None:
        """A run has come so far."""
        self._flights[key].point = point

    def end(self, key: str) -> None:
        """A run is not in progress any more."""
        del self._flights[key]

    def run(self, key: str) -> PlannedRun:
        """Return a run in progress."""
        return self._flights[key].run

    def running(self) -> list[tuple[PlannedRun, float]]:
        """Return every run in progress, and the seconds since it began."""
        now = time.monotonic()
        return [(flight.run, now - flight.began_s) for flight in self._flights.values()]

    def shown(self) -> tuple[InFlight, ...]:
        """Return all of them for a board, in the order of workers."""
        now = time.monotonic()
        return tuple(
            InFlight(
                worker=flight.worker,
                candidate=flight.run.candidate,
                run=flight.run.title,
                step=0 if flight.point is None else flight.point.step,
                steps=flight.run.config.protocol.steps,
                acc_token=None if flight.point is None else flight.point.acc_token,
                seconds=now - flight.began_s,
            )
            for flight in sorted(self._flights.values(), key=lambda flight: flight.worker)
        )
