"""Schemes for the simulator: when workers read, how they write and when they meet.

No worker waits for one that has died or finished.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

from mlxhog.errors import ConfigError
from mlxhog.theory.simulator.workers import (
    Behaviour,
    Condition,
    Phase,
    SharedState,
    Start,
    WorkerContext,
)


@dataclass(frozen=True)
class Scheme(ABC):
    """One way to train together: a frozen dataclass whose fields are its parameters."""

    strategy: ClassVar[str]

    @abstractmethod
    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        """Return the behaviour that a worker begins when it joins.

        Raises:
            ConfigError: the scheme's numbers do not fit the workers.
        """

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker, to be begun when it joins."""
        behaviour = self._behaviour(workers)
        return [partial(behaviour, worker) for worker in workers]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters, for the inputs of a prediction."""
        return {"name": self.strategy, **asdict(self)}


class Barrier:
    """Stages that all workers alive have to end before any of them continues.

    A worker that joins begins in the stage of the others.
    """

    def __init__(self, state: SharedState) -> None:
        """Begin at stage 0."""
        self._state = state
        self._ended: dict[int, int] = {}
        self.passed = 0

    def join(self, rank: int) -> None:
        """Wait for this worker from now on."""
        self._ended[rank] = self.passed

    def arrive(self, rank: int) -> Condition:
        """End a stage; returns the condition that all workers have ended it."""
        self._ended[rank] += 1
        stage = self._ended[rank]

        def over() -> bool:
            others = (self._ended[r] for r in self._state.alive if r in self._ended)
            if all(ended >= stage for ended in others):
                self.passed = max(self.passed, stage)
                return True
            return False

        return over


def _is_first(queue: list[int], worker: WorkerContext) -> bool:
    """Whether a worker is the first in a queue among those alive."""
    while queue[0] not in worker.state.alive:
        queue.pop(0)
    return queue[0] == worker.rank


@dataclass(frozen=True)
class Hogwild(Scheme):
    """Workers read, compute and add without any wait."""

    strategy: ClassVar[str] = "hogwild"

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        def behaviour(worker: WorkerContext) -> Behaviour:
            for _ in worker.steps():
                read = yield from worker.gradient()
                yield worker.add()
                worker.apply(read)

        return behaviour


@dataclass(frozen=True)
class Locked(Scheme):
    """As Hogwild, but one lock lets a single worker at a time do a part of its step.

    Workers get the lock in the order of their arrival; a dead worker's lock is free.

    Attributes:
        scope: "apply" locks the addition of a step, "step" all of it.
    """

    strategy: ClassVar[str] = "locked"
    scope: str = "apply"

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        if self.scope not in ("apply", "step"):
            raise ConfigError(f"a lock of scope {self.scope!r}: wanted apply or step")
        whole, queue = self.scope == "step", list[int]()

        def behaviour(worker: WorkerContext) -> Behaviour:
            take = partial(_is_first, queue, worker)
            for _ in worker.steps():
                if whole:
                    queue.append(worker.rank)
                    yield take
                read = yield from worker.gradient()
                if not whole:
                    queue.append(worker.rank)
                    yield take
                yield worker.add()
                worker.apply(read)
                queue.pop(0)

        return behaviour


@dataclass(frozen=True)
class ParameterServer(Scheme):
    """Workers push gradients to an owner, which applies them in the order of their arrival.

    A worker that has pushed waits until its gradient is in the parameters, then pulls.

    Source: Dean et al. 2012, Large Scale Distributed Deep Networks (Downpour SGD).
    """

    strategy: ClassVar[str] = "async_ps"

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        arrived: list[int] = []

        def behaviour(worker: WorkerContext) -> Behaviour:
            my_turn = partial(_is_first, arrived, worker)
            for _ in worker.steps():
                read = yield from worker.gradient()
                yield worker.copy()
                arrived.append(worker.rank)
                yield my_turn
                yield worker.add()
                worker.apply(read)
                arrived.pop(0)

        return behaviour


@dataclass(frozen=True)
class RoundRobin(Scheme):
    """Workers add in a fixed cyclic order; an early worker waits for its turn.

    Attributes:
        handover_s: seconds until the next worker notices its turn.

    Source: Langford, Smola, Zinkevich 2009, arXiv:0911.0491.
    """

    strategy: ClassVar[str] = "round_robin"
    handover_s: float = 0.0

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        last = [-1]

        def behaviour(worker: WorkerContext) -> Behaviour:
            def my_turn() -> bool:
                alive = worker.state.alive
                following = [rank for rank in alive if rank > last[0]] or alive
                return min(following) == worker.rank

            for _ in worker.steps():
                read = yield from worker.gradient()
                yield my_turn
                yield Phase(self.handover_s)
                yield worker.add()
                worker.apply(read)
                last[0] = worker.rank

        return behaviour


@dataclass(frozen=True)
class SSP(Scheme):
    """Stale synchronous parallel: no worker begins more than `slack` steps ahead of the slowest.

    Bounds clocks, not updates: staleness is at most (P - 1)(2 slack + 1). The slowest worker never
    waits, so no worker waits for ever.

    Attributes:
        slack: s; 0 is a barrier every step.

    Source: Ho et al. 2013, More Effective Distributed ML via a Stale Synchronous Parallel Server.
    """

    strategy: ClassVar[str] = "ssp"
    slack: int = 2

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        if self.slack < 0:
            raise ConfigError(f"a slack of {self.slack}: wanted 0 or more")

        def near(worker: WorkerContext) -> Condition:
            clocks, rank = worker.state.clocks, worker.rank

            def holds() -> bool:
                slowest = min(clocks.get(other, 0) for other in worker.state.alive)
                return clocks.get(rank, 0) - slowest <= self.slack

            return holds

        def behaviour(worker: WorkerContext) -> Behaviour:
            may_read = near(worker)
            for _ in worker.steps():
                yield may_read
                read = yield from worker.gradient()
                yield worker.add()
                worker.apply(read)

        return behaviour


@dataclass(frozen=True)
class Sync(Scheme):
    """Gradients at the same parameters, averaged: one update per round.

    A worker copies its gradient to shared memory; then each averages a share of the parameters over
    all gradients, and makes the step there.

    Attributes:
        backups: workers that a round does not wait for; their gradients are thrown away.
        round_s: seconds for the barriers of a round, beyond the work of each worker.
        by_speed: whether the samples of a round are divided so that all workers end together.

    Source of backups: Chen et al. 2016, arXiv:1604.00981.
    """

    strategy: ClassVar[str] = "sync"
    backups: int = 0
    round_s: float = 0.0
    by_speed: bool = False

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        if not 0 <= self.backups < len(workers):
            raise ConfigError(
                f"{self.backups} backup workers of {len(workers)}: wanted 0 to {len(workers) - 1}, "
                "so that a round waits for one worker at least"
            )
        barrier, computed = Barrier(workers[0].state), dict[int, list[int]]()
        speeds = {one.rank: 1.0 / one.worker.compute.mean_s for one in workers}

        def behaviour(worker: WorkerContext) -> Behaviour:
            state, rank = worker.state, worker.rank
            barrier.join(rank)
            for _ in worker.steps():
                round_ = barrier.passed
                done = computed.setdefault(round_, [])

                def gathered(done: list[int] = done) -> bool:
                    there = len(state.alive)
                    return len(done) >= max(1, there - self.backups)

                read = worker.look()
                yield worker.read()
                share = 1.0
                if self.by_speed:
                    total = sum(speeds[r] for r in state.alive)
                    share = len(state.alive) * speeds[rank] / total
                yield worker.compute(share, gathered)
                if not gathered():
                    yield worker.copy()
                    done.append(rank)
                yield gathered
                n = len(state.alive)
                yield worker.copy((n + 1) / (2 * n))
                yield worker.add(1 / n)
                yield barrier.arrive(rank)
                yield Phase(self.round_s)
                if round_ in computed:  # the first worker to leave the round counts it
                    del computed[round_]
                    used = done[: max(1, n - self.backups)]
                    state.apply(used[0], read, used)
                    state.wasted += n - len(used)

        return behaviour


@dataclass(frozen=True)
class OuterLoop(Scheme):
    """Replicas of the parameters that are merged after each `period` of their steps.

    With one replica for each worker this is local SGD; with fewer, the workers of a replica train
    it lock-free. Every step counts as an update, and staleness counts updates of the same replica.

    Attributes:
        period: steps of each replica between two merges; None for no merge before the end.
        replicas: their number; None for one per worker.
        round_s: seconds for a merge, beyond the copies that each worker makes.
        name: of the strategy, where it is another one.

    Source: Stich 2019, arXiv:1805.09767; Douillard et al. 2023, arXiv:2311.08105.
    """

    strategy: ClassVar[str] = "local_sgd"
    period: int | None
    replicas: int | None = None
    round_s: float = 0.0
    name: str = "local_sgd"

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        if self.period is not None and self.period < 1:
            raise ConfigError(f"an average every {self.period} steps: wanted 1 or more")
        count = len(workers) if self.replicas is None else self.replicas
        if count < 1 or len(workers) % count:
            raise ConfigError(
                f"{count} replicas of {len(workers)} workers: wanted a number that divides them"
            )
        state = workers[0].state
        barrier, merged = Barrier(state), [0]
        steps, versions = [0] * count, [0] * count  # of each replica: begun, ended
        if state.learner is not None:
            state.learner.replicate(count)

        def behaviour(worker: WorkerContext) -> Behaviour:
            own = worker.rank % count
            barrier.join(worker.rank)
            for _ in worker.steps():
                while self.period is not None and steps[own] >= self.period * (merged[0] + 1):
                    yield from meet(worker)
                steps[own] += 1
                yield from worker.replica_step(versions, own)

        def meet(worker: WorkerContext) -> Behaviour:
            round_ = merged[0]
            yield barrier.arrive(worker.rank)
            yield worker.copy((count + 1) / (2 * count))
            yield Phase(self.round_s)
            if merged[0] == round_:
                merged[0] += 1
                steps[:] = [self.period * merged[0] if self.period else n for n in steps]
                if state.learner is not None:
                    state.learner.merge(sorted({1 + rank % count for rank in state.alive}))

        return behaviour
