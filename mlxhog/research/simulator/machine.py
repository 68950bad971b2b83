"""Simulated workers, advanced from one finished phase to the next.

A worker is the costs of its step. A strategy (`strategies.py`) gives the phases of its steps, and
the conditions that it waits for, one after another. Workers may die and join at given times; a
strategy waits for workers alive only.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlxhog.errors import DataError
from mlxhog.research.simulator.objectives import SHARED, SimulatedSGD
from mlxhog.research.simulator.times import ComputeTime, times_of

# -- workers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker, and the costs of its step.

    Raises:
        DataError: a time is negative, or a step takes no time at all.
    """

    name: str  # of its kind, such as "torch:cpu"
    compute: ComputeTime  # of a gradient
    read_s: float = 0.0  # to copy the parameters
    apply_s: float = 0.0  # to apply an update to them
    other_s: float = 0.0  # of a step beside these: its batch, its ticket, its record
    exchange_s: float = 0.0  # to send and receive a step, if other machines share it

    def __post_init__(self) -> None:
        """Check the costs."""
        costs = (self.read_s, self.apply_s, self.other_s, self.exchange_s)
        if not (min(costs) >= 0 and self.step_s > 0):
            raise DataError(
                f"a step of worker {self.name!r} takes {self.step_s:g} s, its parts {costs} s; "
                "wanted parts of 0 s or more, and a step that takes time"
            )

    @property
    def step_s(self) -> float:
        """Expected time of a step that waits for no other worker."""
        return self.read_s + self.compute.mean_s + self.apply_s + self.other_s


def worker_of(times: Mapping[str, Any]) -> Worker:
    """Return a worker of a run, from its part of the run's times."""
    return Worker(
        name=f"{times['slot']} {times['backend']}",
        compute=times_of("recorded", *(us / 1e6 for us in times["compute_us"])),
        **{name: float(times[name]) for name in ("read_s", "apply_s", "other_s")},
    )


# -- what a worker does ----------------------------------------------------------------------------

Condition = Callable[[], bool]  # whether other workers have got so far that this one may continue


class StepPhase(NamedTuple):
    """A phase of a worker's step."""

    seconds: float
    unless: Condition | None = None  # the phase is abandoned as soon as this holds


Behaviour = Iterator[StepPhase | Condition]
"""A worker's phases, and the conditions that it waits for, one after another."""


class SimulatedStrategy(ABC):
    """One way to train together; its fields are its parameters."""

    def shared(self, sim: "Simulation") -> Any:
        """Return the state that the workers of a simulation share: by default a queue of ranks."""
        return []

    @abstractmethod
    def steps(self, worker: "WorkerContext", shared: Any) -> Behaviour:
        """Yield the phases of a worker's steps, without end, from its joining on."""


@dataclass(frozen=True)
class WorkerContext:
    """One worker's side of a simulation: the phases that a strategy makes its steps of."""

    rank: int
    worker: Worker
    sim: "Simulation"
    times: Iterator[float]

    def gradient(self, of: int = SHARED) -> Iterator[StepPhase]:
        """Read one of the copies of the parameters, and compute."""
        self.sim.read(self.rank, of)
        if of == SHARED:  # workers on other machines have it, too
            yield StepPhase(self.worker.exchange_s)
        yield self.read()
        yield self.compute()

    def write(self) -> Iterator[StepPhase]:
        """Apply an update to the copy that was read, and count it."""
        yield self.add()
        self.sim.apply((self.rank,))

    def read(self) -> StepPhase:
        """Get a batch, and copy the parameters of this machine."""
        return StepPhase(self.worker.other_s + self.worker.read_s)

    def compute(self, share: float = 1.0, unless: Condition | None = None) -> StepPhase:
        """Compute a gradient, or one of a share of the samples."""
        return StepPhase(share * next(self.times), unless)

    def add(self, share: float = 1.0) -> StepPhase:
        """Apply an update to a share of the parameters."""
        return StepPhase(share * self.worker.apply_s)

    def copy(self, times: float = 1.0) -> StepPhase:
        """Move the bytes of a copy of the parameters, `times` times."""
        return StepPhase(times * self.worker.read_s)


# -- the clock -------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Event:
    """A worker dies or joins; one whose first event is a join is absent at the start."""

    at_s: float
    rank: int
    joins: bool  # else it dies


PRESENT, WAITS = 0, 1  # rows of `Simulation.seconds`


class Simulation:
    """Simulated workers, advanced until a number of updates is reached; arguments as `simulate`.

    `alive` are ranks, `version` counts updates of all copies of the parameters together,
    `gradients` those in them, `wasted` the dropped ones, `clocks` the steps of each rank.

    Raises:
        ConfigError: the strategy does not fit the workers.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        strategy: SimulatedStrategy,
        *,
        seed: int = 0,
        events: Sequence[Event] = (),
        learner: SimulatedSGD | None = None,
    ) -> None:
        self.workers, self.learner, self.alive = workers, learner, set[int]()
        self.now, self.version, self.gradients, self.wasted = 0.0, 0, 0, 0
        self.staleness: list[tuple[int, int]] = []  # (rank, staleness) of every update, in order
        self.clocks, n = Counter[int](), len(workers)
        self.seconds = np.zeros((2, n))  # that each worker was present, and that it waited
        self._counts = np.zeros((2, n))  # 1 where these seconds count
        self._versions = Counter[int]()  # of each copy
        self._read: dict[int, tuple[int, int]] = {}  # by rank: a copy, and its version
        self._events = sorted(events)
        firsts = {event.rank: event.joins for event in reversed(self._events)}
        self._strategy, self._shared = strategy, strategy.shared(self)
        streams = np.random.SeedSequence(seed).spawn(n)
        self._contexts = [
            WorkerContext(rank, one, self, one.compute.successive(np.random.default_rng(stream)))
            for rank, (one, stream) in enumerate(zip(workers, streams, strict=True))
        ]
        self._behaviours: dict[int, Behaviour] = {}
        self._doing: list[StepPhase | Condition | None] = [None] * n
        self._ends = [math.inf] * n  # of the present phases
        self._watching: set[int] = set()  # ranks with a condition to check
        for rank in range(n):
            if not firsts.get(rank):  # else it joins later
                self._join(rank)
        self._settle()

    # -- updates ---------------------------------------------------------------------------------

    def read(self, rank: int, of: int = SHARED) -> None:
        """Copy the parameters, as they are now, for a worker."""
        if self.learner is not None:
            self.learner.read(rank, of)
        self._read[rank] = of, self._versions[of]

    def apply(self, ranks: Sequence[int]) -> None:
        """Count one update, by the first of some workers, of their mean gradient."""
        of, version = self._read[ranks[0]]
        self.staleness.append((ranks[0], self._versions[of] - version))
        self._versions[of] += 1
        self.version += 1
        self.gradients += len(ranks)
        self.clocks.update(ranks)
        if self.learner is not None:
            self.learner.apply(ranks, of)
            self.learner.evaluate(self.now, self.gradients)

    # -- time ------------------------------------------------------------------------------------

    def run_until(self, version: int, seconds: float = math.inf) -> None:
        """Advance to a number of updates, to a time, or until all workers are dead.

        All updates that end together are included.

        Raises:
            DataError: an event names no worker, or an absent worker dies.
        """
        while self.version < version and self.now < seconds and (self.alive or self._events):
            if self.learner is not None and self.learner.ended:
                return
            end = min(self._ends)
            event = self._events[0] if self._events and self._events[0].at_s <= end else None
            if event is None and end == math.inf:
                raise RuntimeError(f"after {self.version} updates all workers wait for others")
            before, self.now = self.now, end if event is None else event.at_s
            self.seconds += (self.now - before) * self._counts
            if event is not None:
                self._happen(self._events.pop(0))
            else:
                for rank in [rank for rank, at_s in enumerate(self._ends) if at_s <= end]:
                    self._next(rank)
            self._settle()

    def _happen(self, event: Event) -> None:
        workers, present = len(self.workers), event.rank in self.alive
        if not event.at_s >= 0 or not 0 <= event.rank < workers or present == event.joins:
            raise DataError(
                f"worker {event.rank} cannot {'join' if event.joins else 'die'} at {event.at_s:g} "
                f"s: wanted a rank from 0 to {workers - 1}, a time of 0 s or more, and deaths and "
                "joins in turn"
            )
        (self._join if event.joins else self._leave)(event.rank)

    def _join(self, rank: int) -> None:
        if self.alive:  # no worker waits for the steps that it has missed
            slowest = min(self.clocks[other] for other in self.alive)
            self.clocks[rank] = max(self.clocks[rank], slowest)
        self.alive.add(rank)
        self._counts[PRESENT, rank] = 1
        self._behaviours[rank] = self._strategy.steps(self._contexts[rank], self._shared)
        self._next(rank)

    def _leave(self, rank: int) -> None:
        self.alive.discard(rank)
        self._watching.discard(rank)
        self._counts[:, rank] = 0
        self._ends[rank], self._doing[rank] = math.inf, None

    def _settle(self) -> None:
        """Let workers continue whose condition holds, until no further condition holds."""
        moved = True
        while moved:
            moved = False
            for rank in sorted(self._watching):
                doing = self._doing[rank]
                condition = doing.unless if isinstance(doing, StepPhase) else doing
                if condition is not None and condition():
                    self._next(rank)
                    moved = True

    def _next(self, rank: int) -> None:
        """Begin a worker's next phase or wait; phases that take no time end at once."""
        doing = next(self._behaviours[rank])
        while isinstance(doing, StepPhase) and doing.seconds == 0:
            doing = next(self._behaviours[rank])
        phase = doing if isinstance(doing, StepPhase) else None
        self._doing[rank], self._counts[WAITS, rank] = doing, phase is None
        self._ends[rank] = math.inf if phase is None else self.now + phase.seconds
        if phase is None or phase.unless is not None:
            self._watching.add(rank)
        else:
            self._watching.discard(rank)
