"""Workers on shared cores, advanced from one finished phase to the next.

The operating system divides the cores evenly among workers that are active at the same time.
Workers may die and join at given times; a scheme waits for workers alive only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

Float64 = NDArray[np.float64]


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
        n, absent = len(workers), _check_events(self._events, len(workers))
        streams = np.random.SeedSequence(seed).spawn(n)
        contexts = [
            WorkerContext(
                rank, worker, self.state, worker.compute.successive(np.random.default_rng(stream))
            )
            for rank, (worker, stream) in enumerate(zip(workers, streams, strict=True))
        ]
        self._starts = scheme.start(contexts)
        self._cores = math.inf if cores is None else cores
        self._slow = 1.0  # of workers that share the cores now
        self._behaviours: list[Behaviour | None] = [None] * n
        self._doing: list[Phase | Condition | None] = [None] * n
        self._ends = [math.inf] * n  # of the present phases, at the present speed
        self._watching: set[int] = set()  # ranks with a condition to look at
        self._waiting_since, self._since = [math.inf] * n, [math.inf] * n
        self._waited_s, self._there_s = np.zeros(n), np.zeros(n)
        for rank in range(n):
            if rank not in absent:
                self._join(rank)
        self._settle()

    def seconds_so_far(self) -> tuple[Float64, Float64]:
        """Return how long each worker has waited, and how long it has been there, (workers,)."""
        now = self.state.now
        waiting = np.maximum(0.0, now - np.array(self._waiting_since))  # 0 of who does not wait
        there = np.maximum(0.0, now - np.array(self._since))
        return self._waited_s + waiting, self._there_s + there

    def run_until(self, version: int, seconds: float = math.inf) -> None:
        """Advance to a number of updates, to a time, or until all workers have finished.

        All updates that end together are included.

        Raises:
            Deadlock: every worker alive waits for another.
        """
        state = self.state
        while state.version < version and state.now < seconds:
            if not state.alive and not self._events:
                return
            if state.learner is not None and (state.learner.reached or state.learner.diverged):
                return
            end = min(self._ends)
            if self._events and self._events[0].at_s <= end:
                event = self._events.pop(0)
                state.now = event.at_s
                if event.joins:
                    self._join(event.rank)
                elif event.rank in state.alive:  # else it has finished
                    self._leave(event.rank)
            elif end == math.inf:
                waiting = ", ".join(str(rank) for rank in sorted(state.alive))
                raise Deadlock(
                    f"after {state.version} updates every worker waits for another (ranks "
                    f"{waiting})"
                )
            else:
                state.now = end
                for rank in [rank for rank, at_s in enumerate(self._ends) if at_s <= end]:
                    self._next(rank)
            self._settle()

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
        self._stop_waiting(rank)
        self._there_s[rank] += self.state.now - self._since[rank]
        self._since[rank] = self._ends[rank] = math.inf
        self.state.alive.discard(rank)
        self._behaviours[rank] = self._doing[rank] = None
        self._watching.discard(rank)

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
        if self._cores < len(self._ends):
            self._share_cores()

    def _share_cores(self) -> None:
        """Divide the cores evenly; phases end sooner or later than with the last division."""
        on_core = [
            rank
            for rank, doing in enumerate(self._doing)
            if isinstance(doing, Phase) and doing.on_core
        ]
        slow, now = min(1.0, self._cores / max(1, len(on_core))), self.state.now
        if slow != self._slow:
            for rank in on_core:
                self._ends[rank] = now + (self._ends[rank] - now) * self._slow / slow
            self._slow = slow

    def _next(self, rank: int) -> None:
        """Begin a worker's next phase or wait; phases that take no time end at once."""
        self._stop_waiting(rank)
        self._watching.discard(rank)
        behaviour = self._behaviours[rank]
        assert behaviour is not None, "only workers alive have a behaviour"
        doing = next(behaviour, None)
        while isinstance(doing, Phase) and doing.seconds == 0:
            doing = next(behaviour, None)
        if doing is None:
            self._leave(rank)
            return
        self._doing[rank], now = doing, self.state.now
        if isinstance(doing, Phase):
            self._ends[rank] = now + doing.seconds / (self._slow if doing.on_core else 1.0)
            if doing.unless is None:
                return
        else:
            self._ends[rank] = math.inf
            self._waiting_since[rank] = now
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
