"""Strategies for the simulator: when workers read, how they write, and when they wait.

No worker waits for one that has died.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mlxhog.errors import ConfigError
from mlxhog.research.simulator.machine import (
    Behaviour,
    Condition,
    SimulatedStrategy,
    Simulation,
    StepPhase,
    WorkerContext,
)


class Barrier:
    """Stages that all workers alive have to end before any of them continues.

    A worker that joins begins in the stage of the others.
    """

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
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
            if any(self._ended.get(other, stage) < stage for other in self._sim.alive):
                return False
            self.passed = max(self.passed, stage)
            return True

        return over


def _leave(queue: list[int], worker: WorkerContext) -> None:
    """Remove a worker's place in a queue, in which it died, before it begins anew."""
    queue[:] = [rank for rank in queue if rank != worker.rank]


def _is_first(queue: list[int], worker: WorkerContext) -> bool:
    """Whether a worker is the first in a queue among those alive."""
    while queue[0] not in worker.sim.alive:
        queue.pop(0)
    return queue[0] == worker.rank


@dataclass(frozen=True)
class SimulatedHogwild(SimulatedStrategy):
    """Workers read, compute and apply updates without any wait."""

    def steps(self, worker: WorkerContext, shared: list[int]) -> Behaviour:
        while True:
            yield from worker.gradient()
            yield from worker.write()


@dataclass(frozen=True)
class SimulatedLocked(SimulatedStrategy):
    """As Hogwild, but one lock lets a single worker at a time do a part of its step.

    Workers get the lock in the order of their arrival; a dead worker's lock is free.
    """

    scope: str = "apply"  # "apply" locks the addition of a step, "step" all of it

    def steps(self, worker: WorkerContext, shared: list[int]) -> Behaviour:
        _leave(shared, worker)
        while True:
            for part, phases in (("step", worker.gradient), ("apply", worker.write)):
                if self.scope == part:
                    shared.append(worker.rank)
                    yield partial(_is_first, shared, worker)
                yield from phases()
            shared.pop(0)


@dataclass(frozen=True)
class ParameterServer(SimulatedStrategy):
    """Workers push gradients to an owner, which applies them in the order of their arrival.

    A worker that has pushed waits until its gradient is in the parameters, then pulls.

    Source: Dean et al. 2012, Large Scale Distributed Deep Networks (Downpour SGD).
    """

    def steps(self, worker: WorkerContext, shared: list[int]) -> Behaviour:
        _leave(shared, worker)
        while True:
            yield from worker.gradient()
            yield worker.copy()
            shared.append(worker.rank)
            yield partial(_is_first, shared, worker)
            yield from worker.write()
            shared.pop(0)


@dataclass(frozen=True)
class SimulatedRoundRobin(SimulatedStrategy):
    """Workers apply updates in a fixed cyclic order; an early worker waits for its turn.

    Source: Langford, Smola, Zinkevich 2009, arXiv:0911.0491.
    """

    def shared(self, sim: Simulation) -> list[int]:
        return [-1]  # the worker that applied the last update

    def steps(self, worker: WorkerContext, shared: list[int]) -> Behaviour:
        def my_turn() -> bool:
            alive = worker.sim.alive
            following = [rank for rank in alive if rank > shared[0]] or alive
            return min(following) == worker.rank

        while True:
            yield from worker.gradient()
            yield my_turn
            yield from worker.write()
            shared[0] = worker.rank


@dataclass(frozen=True)
class SimulatedSSP(SimulatedStrategy):
    """Stale synchronous parallel: no worker begins more than `slack` steps ahead of the slowest.

    Bounds clocks, not updates: staleness is at most (P - 1)(2 slack + 1). The slowest worker never
    waits, so no worker waits for ever.

    Source: Ho et al. 2013, More Effective Distributed ML via a Stale Synchronous Parallel Server.
    """

    slack: int = 2  # s, at least 0; 0 is a barrier every step

    def steps(self, worker: WorkerContext, shared: list[int]) -> Behaviour:
        sim, clocks = worker.sim, worker.sim.clocks

        def is_near() -> bool:
            return clocks[worker.rank] - min(clocks[other] for other in sim.alive) <= self.slack

        while True:
            yield is_near
            yield from worker.gradient()
            yield from worker.write()


@dataclass(frozen=True)
class SimulatedSync(SimulatedStrategy):
    """Gradients at the same parameters, averaged: one update per synchronous step.

    A worker copies its gradient to shared memory; then each averages a share of the parameters over
    all gradients, and makes the step there.

    Source of backups: Chen et al. 2016, arXiv:1604.00981.
    """

    backups: int = 0  # workers, fewer than all, whose gradients a step does not wait for
    round_s: float = 0.0  # for the barriers, beyond the work of each worker
    by_speed: bool = False  # whether samples are divided so that all workers end together

    def shared(self, sim: Simulation) -> tuple[Barrier, dict[int, list[int]]]:
        return Barrier(sim), {}  # ranks that have computed, by step

    def steps(
        self, worker: WorkerContext, shared: tuple[Barrier, dict[int, list[int]]]
    ) -> Behaviour:
        (barrier, computed), sim, rank = shared, worker.sim, worker.rank
        barrier.join(rank)
        while True:
            round_ = barrier.passed
            done = computed.setdefault(round_, [])

            def gathered(done: list[int] = done) -> bool:
                return len(done) >= max(1, len(sim.alive) - self.backups)

            sim.read(rank)
            yield worker.read()
            yield worker.compute(self._share(sim, rank), gathered)
            if not gathered():
                yield worker.copy()
                done.append(rank)
            yield gathered
            n = len(sim.alive)
            yield worker.copy((n + 1) / (2 * n))
            yield worker.add(1 / n)
            yield barrier.arrive(rank)
            yield StepPhase(self.round_s)
            if round_ in computed:  # the first worker to leave the step counts it
                del computed[round_]
                used = done[: max(1, n - self.backups)]
                sim.apply(used)
                sim.wasted += n - len(used)

    def _share(self, sim: Simulation, rank: int) -> float:
        """Return a worker's samples over the mean of all workers."""
        if not self.by_speed:
            return 1.0
        speeds = {r: 1.0 / sim.workers[r].compute.mean_s for r in sim.alive}
        return len(speeds) * speeds[rank] / sum(speeds.values())


@dataclass(frozen=True)
class OuterLoop(SimulatedStrategy):
    """Replicas of the parameters that are merged after each `period` steps of their workers.

    With one replica for each worker this is local SGD; with fewer, the workers of a replica train
    it lock-free. Every step counts as an update, and staleness counts updates of the same replica.

    Source: Stich 2019, arXiv:1805.09767; Douillard et al. 2023, arXiv:2311.08105.
    """

    period: int | None  # steps of each worker between two merges; None for no merge before the end
    replicas: int | None = None  # their number; None for one per worker
    round_s: float = 0.0  # for a merge, beyond the copies that each worker makes

    def shared(self, sim: Simulation) -> dict[str, Any]:
        workers = len(sim.workers)
        count = workers if self.replicas is None else self.replicas
        if count < 1 or workers % count or (self.period is not None and self.period < 1):
            raise ConfigError(
                f"{count} replicas of {workers} workers, averaged every {self.period} steps: the "
                "number of replicas must divide the number of workers, and the steps be 1 or more"
            )
        if sim.learner is not None:
            sim.learner.replicate(count)
        # Of merges; their number; and the steps that each worker has begun.
        return {"barrier": Barrier(sim), "merged": 0, "steps": [0] * workers, "replicas": count}

    def steps(self, worker: WorkerContext, shared: dict[str, Any]) -> Behaviour:
        steps, rank = shared["steps"], worker.rank
        shared["barrier"].join(rank)
        while True:
            while self.period is not None and steps[rank] >= self.period * (shared["merged"] + 1):
                yield from self._merge(self.period, worker, shared)
            steps[rank] += 1
            yield from worker.gradient(1 + rank % shared["replicas"])
            yield from worker.write()

    def _merge(self, period: int, worker: WorkerContext, shared: dict[str, Any]) -> Behaviour:
        count, sim, round_ = shared["replicas"], worker.sim, shared["merged"]
        yield shared["barrier"].arrive(worker.rank)
        yield worker.copy((count + 1) / (2 * count))
        yield StepPhase(self.round_s)
        if shared["merged"] == round_:
            shared["merged"] += 1
            shared["steps"][:] = [period * shared["merged"]] * len(shared["steps"])
            if sim.learner is not None:
                sim.learner.merge(sorted({1 + rank % count for rank in sim.alive}))
