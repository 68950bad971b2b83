"""Simulated workers that die, come back, join and finish; nobody waits for them."""

import pytest

from mlxhog.errors import DataError
from mlxhog.theory.simulator import Event, simulate
from mlxhog.theory.simulator.schemes import (
    SSP,
    Hogwild,
    Locked,
    OuterLoop,
    ParameterServer,
    RoundRobin,
    Sync,
)
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import Worker
from tests.pairs import each_of

SCHEMES = [
    Hogwild(), Locked(), Locked("step"), ParameterServer(), RoundRobin(), Sync(), Sync(backups=1),
    SSP(1), OuterLoop(4), OuterLoop(4, 2), OuterLoop(None),
]  # fmt: skip


def workers_of(count, **costs):
    return [Worker(name="w", compute=times_of("constant", 1.0), **costs) for _ in range(count)]


@each_of("scheme", SCHEMES)
def test_the_others_go_on_when_a_worker_dies_and_it_works_again_when_it_is_back(scheme):
    """The death falls into the adding of a step, so into a lock, a turn, a round."""
    events = [Event(10.15, 1, joins=False), Event(40.0, 1, joins=True)]
    prediction = simulate(
        workers_of(4, apply_s=0.3), scheme, updates=400, warm_up=0, events=events, seed=2
    )
    steps = [one.steps for one in prediction.workers]
    if not isinstance(scheme, Sync):  # whose rounds are counted for the first who was done
        assert steps[1] > 20
        assert min(steps[0], steps[2], steps[3]) > steps[1]
    assert prediction.gradients_per_s > 0


def test_a_finished_worker_is_waited_for_by_nobody():
    first, *others = workers_of(3)
    short = Worker(name="w", compute=times_of("constant", 1.0), steps=5)
    assert first.steps is None
    for scheme in (Sync(), SSP(0), RoundRobin(), OuterLoop(3)):
        prediction = simulate([short, *others], scheme, updates=100, warm_up=0)
        assert prediction.seconds < 105, scheme


def test_events_that_cannot_be_are_refused():
    for events, text in (
        ([Event(1.0, 5, joins=False)], "wanted one of the 2 workers"),
        ([Event(-1.0, 0, joins=False)], "a time of 0 s or more"),
        ([Event(1.0, 0, joins=False), Event(2.0, 0, joins=False)], "dies while absent"),
        ([Event(1.0, 0, joins=False), Event(2.0, 0, joins=True), Event(3.0, 0, joins=True)],
         "joins while alive"),
        ([Event(900.0, 0, joins=False)], "simulate more updates"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=text):
            simulate(workers_of(2), Hogwild(), updates=100, events=events)
