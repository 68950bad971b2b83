"""The bounded server of document 003 waits for ever, and so does the obvious bound of staleness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest

from mlxhog.theory.simulator import Deadlock, Event, Simulation
from mlxhog.theory.simulator.schemes import SSP, Scheme
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import (
    Condition,
    Worker,
    WorkerContext,
)

STEPS, SCHEDULES = 12, 100

Gate = Callable[[WorkerContext], Condition]


def gated(workers, may_read, may_write, reads):
    """Lock-free steps that wait before the read and before the write.

    Args:
        workers: of the simulation.
        may_read: the condition of a worker before it reads.
        may_write: the condition before it writes.
        reads: filled with the version that each worker with a gradient in flight has read.
    """

    def behaviour(worker):
        before_read, before_write = may_read(worker), may_write(worker)
        reads.pop(worker.rank, None)  # its read before it died
        for _ in worker.steps():
            yield before_read
            reads[worker.rank] = worker.look()
            yield worker.exchange()
            yield worker.read()
            yield worker.compute()
            yield worker.add()
            yield before_write
            worker.apply(reads.pop(worker.rank))

    return [partial(behaviour, worker) for worker in workers]


def at_once(worker):
    """No gate."""
    return lambda: True


@dataclass(frozen=True)
class VersionBound(Scheme):
    """No update is more than `most` updates old when it is added.

    At most `most` + 1 gradients are in flight. A worker may write if all others in flight can still
    write in time, oldest first: v + 1 + j - r_j <= most for the j-th oldest read r_j.

    Attributes:
        most: largest staleness.
    """

    strategy: ClassVar[str] = "version_bound"
    most: int

    def start(self, workers):
        """Return the behaviour of each worker."""
        reads = {}

        def may_read(worker):
            alive = worker.state.alive
            return lambda: sum(rank in alive for rank in reads) <= self.most

        def may_write(worker):
            state, rank = worker.state, worker.rank

            def holds():
                others = sorted(reads[one] for one in reads if one != rank and one in state.alive)
                ahead = (state.version + 1 + j - read for j, read in enumerate(others))
                return max(state.version - reads[rank], *ahead, 0) <= self.most

            return holds

        return gated(workers, may_read, may_write, reads)


@dataclass(frozen=True)
class ObviousBound(Scheme):
    """Write while the oldest other read stays within the bound; equally old reads deadlock."""

    strategy: ClassVar[str] = "version_naive"
    most: int

    def start(self, workers):
        """Return the behaviour of each worker."""
        reads = {}

        def may_write(worker):
            state, rank = worker.state, worker.rank

            def holds():
                others = [reads[one] for one in reads if one != rank and one in state.alive]
                oldest = min(others, default=state.version + 1)
                age = max(state.version - reads[rank], state.version + 1 - oldest)
                return age <= self.most

            return holds

        return gated(workers, at_once, may_write, reads)


@dataclass(frozen=True)
class PushGate(Scheme):
    """Document 003's BoundedStalenessServer: wait at the write while the gradient is too old.

    The version grows and the version that was read stays, so a worker that waits never continues.
    """

    strategy: ClassVar[str] = "push_gate"
    most: int

    def start(self, workers):
        """Return the behaviour of each worker."""
        reads = {}

        def young(worker):
            return lambda: worker.state.version - reads[worker.rank] <= self.most

        return gated(workers, at_once, young, reads)


def random_schedule(rng):
    """Workers of random speeds, deaths, returns, and a slack."""
    count, slack = int(rng.integers(2, 9)), int(rng.integers(0, 5))
    workers = [
        Worker(
            name="w", compute=times_of("lognormal", float(rng.uniform(0.1, 4)), 0.7), steps=STEPS
        )
        for _ in range(count)
    ]
    events = []
    for rank in range(count - 1):
        if rng.random() < 0.3:
            at_s = float(rng.uniform(1, 15))
            events.append(Event(at_s, rank, joins=False))
            if rng.random() < 0.5:
                events.append(Event(at_s + 3.0, rank, joins=True))
    return workers, events, slack


def run(workers, scheme, events, seed):
    """Simulate to the end; whether it is reached."""
    machine = Simulation(workers, scheme, seed=seed, events=events)
    try:
        machine.run_until(10**9)
    except Deadlock:
        return machine, False
    return machine, True


def spread(workers, slack, events, seed):
    """Largest difference between clocks of workers that are there under SSP; whether all finish."""
    machine, widest, version = Simulation(workers, SSP(slack), seed=seed, events=events), 0, -1
    state = machine.state
    try:
        while state.version > version:
            version = state.version
            machine.run_until(version + 1)
            clocks = [state.clocks.get(rank, 0) for rank in state.alive]
            widest = max(widest, max(clocks, default=0) - min(clocks, default=0))
    except Deadlock:
        return widest, False
    return widest, True


@pytest.mark.slow
def test_ssp_and_the_bound_of_all_reads_hold_and_two_other_gates_stop_random_schedules():
    rng = np.random.default_rng(1)
    stopped = {"obvious": 0, "push": 0}
    for seed in range(SCHEDULES):
        workers, events, slack = random_schedule(rng)
        clocks, ended = spread(workers, slack, events, seed)
        assert ended
        assert clocks <= slack + 1
        machine, ended = run(workers, VersionBound(slack + 1), events, seed)
        assert ended
        assert all(tau <= slack + 1 for _, tau in machine.state.lateness)
        stopped["obvious"] += not run(workers, ObviousBound(slack + 1), (), seed)[1]
        stopped["push"] += not run(workers, PushGate(1), (), seed)[1]
    assert min(stopped.values()) > 0
