"""Simulated workers: costs of their steps, some from recorded runs, and the state they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.errors import DataError
from mlxhog.theory.simulator.objectives import Learner
from mlxhog.theory.simulator.times import ComputeTime, times_of

Condition = Callable[[], bool]
"""Whether other workers have got so far that this one may continue."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker, and the costs of its step when it has the machine to itself.

    Attributes:
        name: of its kind, such as "torch:cpu".
        compute: time of a gradient.
        read_s: seconds to take a copy of the parameters.
        apply_s: seconds to add a step to them.
        other_s: seconds of a step beside these: its batch, its ticket, its record.
        exchange_s: seconds to send and receive a step, if steps are shared with workers on other
            machines; the scheme has those of a round or a merge.
        on_core: whether it computes on a core of the CPU (a GPU worker does not).
        steps: number after which it is finished; None for no end.

    Raises:
        DataError: a time is negative, or a step takes no time at all.
    """

    name: str
    compute: ComputeTime
    read_s: float = 0.0
    apply_s: float = 0.0
    other_s: float = 0.0
    exchange_s: float = 0.0
    on_core: bool = True
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the costs."""
        for name in ("read_s", "apply_s", "other_s", "exchange_s"):
            if not getattr(self, name) >= 0:
                raise DataError(
                    f"worker {self.name!r} has {name} = {getattr(self, name)}; wanted 0 or more"
                )
        if not self.step_s > 0:
            raise DataError(f"a step of worker {self.name!r} takes no time; give it some")

    @property
    def step_s(self) -> float:
        """Expected time of a step, alone."""
        return self.read_s + self.compute.mean_s + self.apply_s + self.other_s

    def to_json(self) -> dict[str, Any]:
        """Return the costs as JSON types."""
        costs = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return costs | {"compute": self.compute.to_json()}


def worker_of(times: Mapping[str, Any]) -> Worker:
    """Return a worker of a run, from its part of the run's times.

    Raises:
        LookupError, TypeError, ValueError, DataError: they are not times of steps.
    """
    return Worker(
        name=f"{times['slot']} {times['backend']}",
        compute=times_of("recorded", *(us / 1e6 for us in times["compute_us"])),
        read_s=float(times["read_s"]),
        apply_s=float(times["apply_s"]),
        other_s=float(times["other_s"]),
        on_core=times["backend"] not in GPU_BACKENDS,
    )


@dataclass(frozen=True)
class Phase:
    """A phase of a worker's step.

    Attributes:
        seconds: at full speed.
        on_core: whether it needs a core of the CPU.
        unless: the phase is abandoned as soon as this holds.
    """

    seconds: float
    on_core: bool = True
    unless: Condition | None = None


Behaviour = Iterator[Phase | Condition]
"""A worker's phases, and the conditions that it waits for, one after another."""

Start = Callable[[], Behaviour]
"""Begins the behaviour of a worker that joins."""


@dataclass
class SharedState:
    """The state that workers share: version and counts of the parameters' updates.

    Attributes:
        alive: ranks of workers that have joined, and neither died nor finished.
        learner: parameters that the updates move; None if only times are simulated.
        lateness: (rank, staleness) of every update, in order.
        clocks: steps that each rank has ended.
    """

    alive: set[int] = field(default_factory=set)
    learner: Learner | None = None
    now: float = 0.0
    version: int = 0
    gradients: int = 0
    wasted: int = 0
    lateness: list[tuple[int, int]] = field(default_factory=list)
    clocks: dict[int, int] = field(default_factory=dict)

    def look(self, rank: int) -> int:
        """Take the parameters as they are; returns their version."""
        if self.learner is not None:
            self.learner.read(rank)
        return self.version

    def apply(self, rank: int, read_version: int, by: Sequence[int] = ()) -> None:
        """Count one update by a worker at the version that it had read.

        Args:
            rank: of the worker.
            read_version: as `look` returned it.
            by: the ranks whose mean gradient it is; none is the worker's own.
        """
        ranks = tuple(by) or (rank,)
        if self.learner is not None:
            self.learner.apply(ranks)
        self.count(rank, self.version - read_version, ranks)

    def count(self, rank: int, staleness: int, ranks: Sequence[int]) -> None:
        """Count one update, made of the gradients of some ranks."""
        self.lateness.append((rank, staleness))
        self.version += 1
        self.gradients += len(ranks)
        for each in ranks:
            self.clocks[each] = self.clocks.get(each, 0) + 1
        if self.learner is not None:
            self.learner.note(self.now, self.gradients)


@dataclass(frozen=True)
class WorkerContext:
    """One worker's side of a simulation: its costs, the shared state, its next compute time."""

    rank: int
    worker: Worker
    state: SharedState
    times: Iterator[float]

    def steps(self) -> Iterator[int]:
        """Yield the number of each step to do, until the worker is finished."""
        number = self.state.clocks.get(self.rank, 0)
        last = math.inf if self.worker.steps is None else self.worker.steps
        while number < last:
            yield number
            number += 1

    def look(self) -> int:
        """Take the parameters as they are; returns their version."""
        return self.state.look(self.rank)

    def apply(self, read_version: int) -> None:
        """Count an update of this worker's own gradient."""
        self.state.apply(self.rank, read_version)

    def gradient(self) -> Generator[Phase, None, int]:
        """Read and compute; returns the version that was read."""
        version = self.look()
        yield self.exchange()
        yield self.read()
        yield self.compute()
        return version

    def replica_step(self, versions: list[int], own: int) -> Behaviour:
        """Read, compute and add a step of one of several copies of the parameters.

        Args:
            versions: of every copy, in updates; this step counts as one.
            own: number of the copy, from 0.
        """
        state, read = self.state, versions[own]
        if state.learner is not None:
            state.learner.read(self.rank, of=1 + own)
        yield self.read()
        yield self.compute()
        yield self.add()
        if state.learner is not None:
            state.learner.apply((self.rank,), of=1 + own)
        state.count(self.rank, versions[own] - read, (self.rank,))
        versions[own] += 1

    def read(self) -> Phase:
        """Get a batch, and copy the parameters of this machine."""
        return self._work(self.worker.other_s + self.worker.read_s)

    def exchange(self) -> Phase:
        """Send a step to workers on other machines, and receive theirs."""
        return Phase(self.worker.exchange_s, on_core=False)

    def compute(self, share: float = 1.0, unless: Condition | None = None) -> Phase:
        """Compute a gradient, or one of a share of the samples."""
        return self._work(share * next(self.times), unless)

    def add(self, share: float = 1.0) -> Phase:
        """Add a step to a share of the parameters."""
        return self._work(share * self.worker.apply_s)

    def copy(self, times: float = 1.0) -> Phase:
        """Move the bytes of a copy of the parameters, `times` times."""
        return self._work(times * self.worker.read_s)

    def _work(self, seconds: float, unless: Condition | None = None) -> Phase:
        return Phase(seconds, self.worker.on_core, unless)
