"""The clock of the simulator: who is busy, how fast, and what happens next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlxhog.theory.simulator import sharing
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import Behaviour, Board, Condition, Desk, Work, Worker

_DRAWN_AT_ONCE = 256


@dataclass(frozen=True)
class Snapshot:
    """The state of a simulation: simulated seconds, and counts since its start."""

    now: float
    version: int
    gradients: int
    wasted: int
    waited_s: float


class Machine:
    """Workers on shared cores and memory, advanced from one finished phase to the next."""

    def __init__(
        self,
        workers: Sequence[Worker],
        scheme: Scheme,
        *,
        cores: int | None,
        bandwidth: float | None,
        seed: int,
    ) -> None:
        """Start every worker's first phase at time 0; arguments as in `simulator.simulate`."""
        self.board, self.now, self.waited_s = Board(), 0.0, 0.0
        self._cores, self._bandwidth = cores, bandwidth
        streams = np.random.SeedSequence(seed).spawn(len(workers))
        self._behaviours: list[Behaviour] = scheme.start(
            [
                Desk(rank, worker, self.board, _times(worker, np.random.default_rng(stream)))
                for rank, (worker, stream) in enumerate(zip(workers, streams, strict=True))
            ]
        )
        self._doing: list[Work | Condition] = [next(each) for each in self._behaviours]
        self._left = [math.inf] * len(workers)  # seconds of work at full speed
        for rank in range(len(workers)):
            self._begin(rank)
        self._settle()

    def snapshot(self) -> Snapshot:
        """Return where the simulation is."""
        board = self.board
        return Snapshot(self.now, board.version, board.gradients, board.wasted, self.waited_s)

    def run_until(self, version: int) -> None:
        """Advance until so many updates have been made; all that end together are included."""
        while self.board.version < version:
            self._advance()

    def _advance(self) -> None:
        """Go on to the time at which the next phase ends."""
        active = [rank for rank, left in enumerate(self._left) if left < math.inf]
        assert active, "every worker waits for another: a scheme deadlocks"
        works = [work for rank in active if isinstance(work := self._doing[rank], Work)]
        speed = sharing.speeds(
            [work.on_core for work in works],
            [work.moved_bytes / work.seconds for work in works],
            cores=self._cores,
            bandwidth=self._bandwidth,
        )
        ends = [self._left[rank] / s for rank, s in zip(active, speed, strict=True)]
        step = min(ends)
        self.now += step
        self.waited_s += step * (len(self._left) - len(active))
        for rank, s, end in zip(active, speed, ends, strict=True):
            self._left[rank] = 0.0 if end == step else max(0.0, self._left[rank] - step * s)
        for rank in active:
            if self._left[rank] == 0.0:
                self._next(rank)
        self._settle()

    def _settle(self) -> None:
        """Let go who waits for something that has happened, until nothing more happens."""
        moved = True
        while moved:
            moved = False
            for rank, doing in enumerate(self._doing):
                condition = doing.unless if isinstance(doing, Work) else doing
                if condition is not None and condition():
                    self._next(rank)
                    moved = True

    def _next(self, rank: int) -> None:
        self._doing[rank] = next(self._behaviours[rank])
        self._begin(rank)

    def _begin(self, rank: int) -> None:
        """Take up what a worker does; phases that take no time are over at once."""
        while isinstance(doing := self._doing[rank], Work) and doing.seconds == 0:
            self._doing[rank] = next(self._behaviours[rank])
        self._left[rank] = doing.seconds if isinstance(doing, Work) else math.inf


def _times(worker: Worker, rng: np.random.Generator) -> Callable[[], float]:
    """A worker's successive compute times, drawn many at once."""
    times: list[float] = []

    def next_s() -> float:
        if not times:
            times.extend(worker.compute.draw(rng, _DRAWN_AT_ONCE).tolist())
        return times.pop()

    return next_s
