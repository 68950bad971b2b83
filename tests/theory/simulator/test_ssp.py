"""SSP keeps its bound, and no worker waits for ever."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.theory.simulator import Event, Simulation, simulate
from mlxhog.theory.simulator.schemes import SSP, Scheme
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import Worker


def workers_of(count, slow=1.0, steps=None):
    """The first is slower by a factor."""
    same = Worker(name="w", compute=times_of("exponential", 0.5, 0.5), steps=steps)
    first = replace(same, compute=same.compute.scaled(slow))
    return [first, *[same] * (count - 1)]


def spread(machine):
    """How far clocks of workers that are there lie apart."""
    clocks = [machine.state.clocks.get(rank, 0) for rank in machine.state.alive]
    return max(clocks) - min(clocks)


@pytest.mark.parametrize("slack", [0, 1, 3])
def test_clocks_of_ssp_never_spread_by_more_than_the_slack_and_one(slack):
    machine = Simulation(workers_of(8, slow=10.0), SSP(slack), seed=3)
    widest = 0
    for version in range(1, 1500):
        machine.run_until(version)
        widest = max(widest, spread(machine))
    assert widest == slack + 1
    assert max(tau for _, tau in machine.state.lateness) <= 7 * (2 * slack + 1)


@pytest.mark.slow
def test_in_the_long_run_ssp_is_as_slow_as_its_slowest_worker():
    slow = simulate(workers_of(8, slow=10.0), SSP(3), updates=4000)
    assert slow.gradients_per_s == pytest.approx(8 * 0.1, rel=0.05)
    assert slow.waiting[0] == 0
    assert min(share for share in slow.waiting[1:] if share is not None) > 0.8
    even = simulate(workers_of(8), SSP(3), updates=4000)
    assert even.gradients_per_s > simulate(workers_of(8), SSP(0), updates=4000).gradients_per_s


def schedule(rng):
    """Workers of random speeds, some of which die, some of which come back."""
    count, slack = int(rng.integers(2, 9)), int(rng.integers(0, 5))
    workers = [
        Worker(name="w", compute=times_of("lognormal", float(rng.uniform(0.1, 4)), 0.7), steps=20)
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


@pytest.mark.slow
def test_random_schedules_with_deaths_all_come_to_their_end():
    rng = np.random.default_rng(0)
    for seed in range(40):
        workers, events, slack = schedule(rng)
        machine = Simulation(workers, SSP(slack), seed=seed, events=events)
        machine.run_until(10**6)
        assert machine.state.clocks[len(workers) - 1] == 20  # who never dies has finished
        assert not machine.state.alive


@dataclass(frozen=True)
class PushGate(Scheme):
    """Document 003's BoundedStalenessServer: wait at the write while the gradient is too old.

    The version grows and the version that was read stays, so a worker that waits never continues.
    """

    strategy: ClassVar[str] = "push_gate"
    most: int

    def _behaviour(self, workers):
        def behaviour(worker):
            for _ in worker.steps():
                read = yield from worker.gradient()
                yield lambda: worker.state.version - read <= self.most  # noqa: B023
                worker.apply(read)

        return behaviour


def test_a_bound_at_the_push_waits_for_ever():
    machine = Simulation(workers_of(4, slow=10.0), PushGate(1))
    machine.run_until(1000)
    assert 0 not in machine.state.clocks


def test_a_negative_slack_is_refused():
    with pytest.raises(ConfigError, match="of -1: wanted 0 or more"):
        simulate(workers_of(2), SSP(-1))
