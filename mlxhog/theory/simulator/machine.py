"""Workers on shared cores, advanced from one finished phase to the next.

The operating system divides the cores evenly among workers that are active at the same time.
Workers may die and join at given times; a scheme waits for workers alive only.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxhog.errors import DataError
from mlxhog.theory.simulator.objectives import Learner
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import (
    Behaviour,
    Condition,
    Phase,
    SharedState,
    Worker,
    WorkerContext,
)


class Deadlock(Exception):
    """Every worker alive waits for another; the message has the number of updates so far."""


@dataclass(frozen=True, order=True)
class Event:
    """A worker dies or joins.

    Attributes:
        at_s: simulated seconds.
        rank: of the worker.
        joins: whether it joins; else it dies. A worker whose first event is a join starts absent.
    """

    at_s: float
    rank: int
    joins: bool


@dataclass(frozen=True)
class Snapshot:
    """The state of a simulation: simulated seconds, and counts since its start."""

    now: float
    version: int
    gradients: int
    wasted: int
    waited_s: tuple[float, ...]
    there_s: tuple[float, ...]


class Simulation:
    """Simulated workers, advanced until a number of updates is reached."""

    def __init__(
        self,
        workers: Sequence[Worker],
        scheme: Scheme,
        *,
        cores: int | None = None,
        seed: int = 0,
        events: Sequence[Event] = (),
        learner: Learner | None = None,
    ) -> None:
        """Start the first phase of every worker but later ones; arguments as in `simulate`.

        Raises:
            DataError: an event names no worker, or an absent worker dies.
            ConfigError: the scheme does not fit the workers.
        """
        self.state = SharedState(learner=learner)
        self._events = sorted(events)
        absent = _check_events(self._events, len(workers))
        on_core = sum(worker.on_core for worker in workers)
        self._cores = math.inf if cores is None else cores
        self._free = on_core <= self._cores  # then no worker slows another
        streams = np.random.SeedSequence(seed).spawn(len(workers))
        contexts = [
            WorkerContext(
                rank, worker, self.state, worker.compute.successive(np.random.default_rng(stream))
            )
            for rank, (worker, stream) in enumerate(zip(workers, streams, strict=True))
        ]
        self._starts = scheme.start(contexts)
        n = len(workers)
        self._behaviours: list[Behaviour | None] = [None] * n
        self._doing: list[Phase | Condition | None] = [None] * n
        self._rest_s = [math.inf] * n  # seconds of work at full speed; of a free machine, unused
        self._ends: list[tuple[float, int, int]] = []  # heap of a free machine: end, rank, phase
        self._phase = [0] * n
        self._watching: set[int] = set()  # ranks with a condition to look at
        self._waiting_since = [math.inf] * n
        self._waited_s, self._there_s, self._since = [0.0] * n, [0.0] * n, [math.inf] * n
        for rank in range(n):
            if rank not in absent:
                self._join(rank)
        self._settle()

    def snapshot(self) -> Snapshot:
        """Return the present time and counts."""
        state, now = self.state, self.state.now
        waited = (
            w + max(0.0, now - s) for w, s in self._so_far(self._waited_s, self._waiting_since)
        )
        there = (t + max(0.0, now - s) for t, s in self._so_far(self._there_s, self._since))
        return Snapshot(
            now, state.version, state.gradients, state.wasted, tuple(waited), tuple(there)
        )

    @staticmethod
    def _so_far(past: Sequence[float], since: Sequence[float]) -> zip[tuple[float, float]]:
        return zip(past, since, strict=True)

    def run_until(self, version: int, seconds: float = math.inf) -> None:
        """Advance to a number of updates, to a time, or until all workers have finished.

        All updates that end together are included.

        Raises:
            Deadlock: every worker alive waits for another.
        """
        learner = self.state.learner
        while self.state.version < version and self.state.now < seconds:
            if not self.state.alive and not self._events:
                return
            if learner is not None and (learner.reached is not None or learner.diverged):
                return
            self._advance()

    # -- joins and deaths ------------------------------------------------------------------------

    def _join(self, rank: int) -> None:
        state = self.state
        if state.alive:  # no worker waits for the steps that it has missed
            slowest = min(state.clocks.get(other, 0) for other in state.alive)
            state.clocks[rank] = max(state.clocks.get(rank, 0), slowest)
        state.alive.add(rank)
        self._since[rank] = state.now
        self._behaviours[rank] = self._starts[rank]()
        self._next(rank)

    def _leave(self, rank: int) -> None:
        state, now = self.state, self.state.now
        self._stop_waiting(rank)
        self._there_s[rank] += now - self._since[rank]
        self._since[rank] = math.inf
        state.alive.discard(rank)
        self._behaviours[rank] = self._doing[rank] = None
        self._rest_s[rank] = math.inf
        self._phase[rank] += 1
        self._watching.discard(rank)

    def _happen(self) -> None:
        """Apply the next event."""
        event = self._events.pop(0)
        self.state.now = event.at_s
        if event.joins:
            self._join(event.rank)
        elif event.rank in self.state.alive:  # else it has finished
            self._leave(event.rank)
        self._settle()

    # -- time ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Advance to the end of the next phase, or to the next event."""
        state = self.state
        next_end = self._next_end()
        if self._events and self._events[0].at_s <= next_end:
            if not self._free and next_end < math.inf:
                self._work(self._events[0].at_s - state.now)
            self._happen()
            return
        if next_end == math.inf:
            waiting = ", ".join(str(rank) for rank in sorted(state.alive))
            raise Deadlock(
                f"after {state.version} updates every worker waits for another (ranks {waiting})"
            )
        if self._free:
            ended = self._pop(next_end)
        else:
            ended = self._work_until_one_ends()
        state.now = next_end
        for rank in ended:
            self._next(rank)
        self._settle()

    def _next_end(self) -> float:
        """Return the time at which the next phase ends; infinite if no worker has one."""
        if self._free:
            while self._ends and self._phase[self._ends[0][1]] != self._ends[0][2]:
                heapq.heappop(self._ends)  # it was abandoned
            return self._ends[0][0] if self._ends else math.inf
        ends = (self._rest_s[rank] / speed for rank, speed in zip(*self._active(), strict=True))
        return self.state.now + min(ends, default=math.inf)

    def _pop(self, end: float) -> list[int]:
        """Return the ranks whose phase ends by then."""
        ended = []
        while self._ends and self._ends[0][0] <= end:
            _, rank, phase = heapq.heappop(self._ends)
            if self._phase[rank] == phase:
                ended.append(rank)
        return sorted(ended)

    def _active(self) -> tuple[list[int], list[float]]:
        """Return the ranks that work, and their speeds."""
        active = [rank for rank, rest_s in enumerate(self._rest_s) if rest_s < math.inf]
        on_core = [isinstance(one := self._doing[rank], Phase) and one.on_core for rank in active]
        slow = min(1.0, self._cores / max(1, sum(on_core)))
        return active, [slow if needs else 1.0 for needs in on_core]

    def _work(self, seconds: float) -> None:
        """Let all workers work for a time, which ends no later than the first phase."""
        active, speed = self._active()
        for rank, s in zip(active, speed, strict=True):
            self._rest_s[rank] = max(0.0, self._rest_s[rank] - seconds * s)

    def _work_until_one_ends(self) -> list[int]:
        """Let all workers work until a phase ends; returns the ranks whose phase ends."""
        active, speed = self._active()
        ends = [self._rest_s[rank] / s for rank, s in zip(active, speed, strict=True)]
        self._work(min(ends))
        ended = [rank for rank, end in zip(active, ends, strict=True) if end == min(ends)]
        for rank in ended:
            self._rest_s[rank] = 0.0
        return ended

    # -- phases of the workers -------------------------------------------------------------------

    def _settle(self) -> None:
        """Let workers continue whose condition holds, until no further condition holds."""
        moved = True
        while moved:
            moved = False
            for rank in sorted(self._watching):
                doing = self._doing[rank]
                condition = doing.unless if isinstance(doing, Phase) else doing
                if condition is not None and condition():
                    self._next(rank)
                    moved = True

    def _next(self, rank: int) -> None:
        """Begin a worker's next phase or wait; phases that take no time end at once."""
        self._stop_waiting(rank)
        self._watching.discard(rank)
        behaviour = self._behaviours[rank]
        assert behaviour is not None, "only workers alive have a behaviour"
        self._phase[rank] += 1
        doing = next(behaviour, None)
        while isinstance(doing, Phase) and doing.seconds == 0:
            doing = next(behaviour, None)
        if doing is None:
            self._leave(rank)
            return
        self._doing[rank] = doing
        if isinstance(doing, Phase):
            self._rest_s[rank] = doing.seconds
            if self._free:
                end = self.state.now + doing.seconds
                heapq.heappush(self._ends, (end, rank, self._phase[rank]))
            if doing.unless is not None:
                self._watching.add(rank)
            return
        self._rest_s[rank] = math.inf
        self._waiting_since[rank] = self.state.now
        self._watching.add(rank)

    def _stop_waiting(self, rank: int) -> None:
        if self._waiting_since[rank] < math.inf:
            self._waited_s[rank] += self.state.now - self._waiting_since[rank]
            self._waiting_since[rank] = math.inf


def _check_events(events: Sequence[Event], workers: int) -> set[int]:
    """Refuse impossible events; return the ranks that are absent at the start."""
    there: dict[int, bool] = {}
    absent = set()
    for event in events:
        if not 0 <= event.rank < workers or not event.at_s >= 0:
            raise DataError(
                f"worker {event.rank} at {event.at_s:g} s: wanted one of the {workers} workers "
                f"(ranks 0 to {workers - 1}), and a time of 0 s or more"
            )
        if event.rank not in there and event.joins:
            absent.add(event.rank)
        elif there.get(event.rank, True) == event.joins:
            what = "joins while alive" if event.joins else "dies while absent"
            raise DataError(f"worker {event.rank} {what} at {event.at_s:g} s; leave that out")
        there[event.rank] = event.joins
    return absent
