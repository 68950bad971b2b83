"""Simulated workers, links and toy problems against closed forms; no worker waits for the dead."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import ConfigError, DataError
from mlxhog.research.simulator import simulate
from mlxhog.research.simulator.links import ClusterRounds, Link, sent_bytes
from mlxhog.research.simulator.machine import Event, Simulation, Worker
from mlxhog.research.simulator.objectives import Quadratic, SimulatedSGD
from mlxhog.research.simulator.strategies import (
    OuterLoop,
    ParameterServer,
    SimulatedHogwild,
    SimulatedLocked,
    SimulatedRoundRobin,
    SimulatedSSP,
    SimulatedSync,
)
from mlxhog.research.simulator.times import times_of
from mlxhog.research.simulator.what_if import SimulateConfig, best_time, compare
from tests.pairs import each_of
from tests.tolerances import SIMULATED_RATE

SECOND, SHIFTED = times_of("constant", 1.0), times_of("exponential", 1.0, 2.0)
ROUNDS = 4000


def workers_of(workers, compute=SECOND, **costs):
    return [Worker(name="w", compute=compute, **costs) for _ in range(workers)]


def close(value):
    return pytest.approx(value, rel=SIMULATED_RATE.of_largest)


def round_s(workers, backups):
    """Mean time of the slowest of shifted times, without the backups."""
    return 1.0 + 2.0 * sum(1 / k for k in range(backups + 1, workers + 1))


CLOSED_FORMS = [  # strategy, workers, what is predicted
    *((SimulatedHogwild(), workers_of(n, SHIFTED),
       {"updates_per_s": n / 3, "efficiency": 1, "waiting_share": 0}) for n in (1, 10)),
    *((SimulatedSync(backups=b), workers_of(n, SHIFTED),
       {"updates_per_s": 1 / round_s(n, b), "gradients_per_s": (n - b) / round_s(n, b),
        "wasted_share": b / n}) for n, b in ((1, 0), (4, 0), (8, 1), (8, 7))),
    # Amdahl's law: adding takes a quarter of a step.
    *((SimulatedLocked(), workers_of(n, times_of("constant", 0.75), apply_s=0.25),
       {"updates_per_s": min(n, 4)}) for n in (1, 2, 16)),
    *((SimulatedRoundRobin(), workers_of(n, read_s=0.1, apply_s=0.2),
       {"updates_per_s": n / max(1.3, n * 0.2)}) for n in (1, 2, 10)),
    # Of a merge each reads a share of three copies, and writes it.
    (OuterLoop(period=4, round_s=1.0), workers_of(3, read_s=0.5, apply_s=0.25),
     {"updates_per_s": 3 * 4 / (4 * 1.75 + (3 + 1) / (2 * 3) * 0.5 + 1.0)}),
]  # fmt: skip


@pytest.mark.parametrize("row", CLOSED_FORMS, ids=range(len(CLOSED_FORMS)))
def test_a_strategy_has_the_speed_of_its_closed_form(row):
    strategy, workers, expected = row
    prediction = simulate(workers, strategy, updates=ROUNDS)
    for name, value in expected.items():
        assert getattr(prediction, name) == close(value), name
    if isinstance(strategy, SimulatedSync | OuterLoop):
        assert prediction.staleness.max == 0


def test_each_worker_takes_its_steps_between_two_merges_where_two_share_a_replica_too():
    strategy = OuterLoop(period=4, replicas=2, round_s=1.0)
    prediction = simulate(workers_of(4), strategy, updates=ROUNDS)
    assert prediction.updates_per_s == close(4 * 4 / (4 * 1.0 + 1.0))


@pytest.mark.parametrize(
    ("workers", "time"),
    [(1, SECOND), (2, times_of("exponential", 0.0, 1.0)), (4, SHIFTED),
     (8, times_of("recorded", 0.5, 0.5, 0.6, 3.0))],
)  # fmt: skip
def test_the_mean_staleness_of_hogwild_is_the_number_of_the_others(workers, time):
    prediction = simulate(workers_of(workers, time, read_s=0.1, apply_s=0.1), SimulatedHogwild())
    # Exact but for the gradients in flight when counting starts and ends.
    edge = workers * prediction.staleness.max / prediction.staleness.steps
    assert prediction.staleness.mean == pytest.approx(workers - 1, abs=edge)


def test_a_slow_worker_changes_who_is_stale_but_not_the_mean():
    prediction = simulate(straggling(8, slow=10.0)[::-1], SimulatedHogwild(), updates=ROUNDS)
    assert prediction.staleness.mean == pytest.approx(7, abs=0.1)
    *fast, slow = prediction.workers
    assert slow.mean > 5 * max(worker.mean for worker in fast)
    assert slow.steps < min(worker.steps for worker in fast)


@pytest.mark.parametrize(
    "strategy", [SimulatedHogwild(), SimulatedRoundRobin(), SimulatedSync(backups=1), OuterLoop(3)]
)
def test_the_same_seed_gives_the_same_prediction(strategy):
    workers = workers_of(3, SHIFTED, apply_s=0.1)
    runs = [simulate(workers, strategy, updates=500, seed=seed) for seed in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[0].seconds != runs[2].seconds


def test_a_step_without_time_and_replicas_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="parts of 0 s or more, and a step that takes time"):
        workers_of(1, times_of("constant", 0.0))
    with pytest.raises(ConfigError, match="replicas must divide"):
        simulate(workers_of(2), OuterLoop(1, 3))


def straggling(count, slow):
    """Workers, the first of which is slower by a factor."""
    same = Worker(name="w", compute=times_of("exponential", 0.5, 0.5))
    return [replace(same, compute=same.compute.scaled(slow)), *[same] * (count - 1)]


@pytest.mark.parametrize("slack", [0, 1, 3])
def test_clocks_of_ssp_never_spread_by_more_than_the_slack_and_one(slack):
    machine = Simulation(straggling(8, slow=10.0), SimulatedSSP(slack), seed=3)
    widest = 0
    for version in range(1, 1500):
        machine.run_until(version)
        clocks = [machine.clocks[rank] for rank in machine.alive]
        widest = max(widest, max(clocks) - min(clocks))
    assert widest == slack + 1
    assert max(tau for _, tau in machine.staleness) <= 7 * (2 * slack + 1)


def test_in_the_long_run_ssp_is_as_slow_as_its_slowest_worker():
    slow = simulate(straggling(8, slow=10.0), SimulatedSSP(3), updates=ROUNDS)
    assert slow.gradients_per_s == pytest.approx(8 * 0.1, rel=0.05)
    assert slow.waiting[0] == 0
    assert min(slow.waiting[1:]) > 0.8


STRATEGIES = [
    SimulatedHogwild(), SimulatedLocked(), SimulatedLocked("step"), ParameterServer(),
    SimulatedRoundRobin(), SimulatedSync(), SimulatedSync(backups=1), SimulatedSSP(1),
    OuterLoop(4), OuterLoop(4, 2), OuterLoop(None),
]  # fmt: skip


@each_of("strategy", STRATEGIES)
def test_the_others_go_on_when_a_worker_dies_and_it_works_again_when_it_is_back(strategy):
    """The death falls into the adding of a step, so into a lock, a turn, a round."""
    events = [Event(10.15, 1, joins=False), Event(40.0, 1, joins=True)]
    prediction = simulate(
        workers_of(4, apply_s=0.3), strategy, updates=400, warmup=0, events=events, seed=2
    )
    steps = [one.steps for one in prediction.workers]
    if not isinstance(
        strategy, SimulatedSync
    ):  # whose rounds are counted for the first who was done
        assert min(steps[0], steps[2], steps[3]) > steps[1] > 20


@each_of("strategy", [SimulatedLocked(), SimulatedLocked("step"), ParameterServer()])
def test_a_worker_that_died_in_a_queue_and_returns_soon_holds_up_no_other(strategy):
    workers = workers_of(4, apply_s=0.2)
    events = [Event(30.1, 1, joins=False), Event(30.15, 1, joins=True)]
    with_death, without = (
        simulate(workers, strategy, updates=400, warmup=0, events=those).gradients_per_s
        for those in (events, ())
    )
    assert with_death == pytest.approx(without, rel=0.02)


@pytest.mark.slow
@each_of("strategy", STRATEGIES)
def test_random_deaths_never_bring_the_others_to_a_stop(strategy):
    rng = np.random.default_rng(0)
    for seed in range(10):
        times = [times_of("lognormal", float(rng.uniform(0.1, 4)), 0.7) for _ in range(4)]
        events = [
            Event(at_s + later_s, rank, joins=later_s > 0)
            for rank, at_s in zip(range(2), rng.uniform(1, 15, 2).tolist(), strict=True)
            for later_s in ((0.0, 3.0) if rng.random() < 0.5 else (0.0,))
        ]
        workers = [Worker(name="w", compute=time) for time in times]
        machine = Simulation(workers, strategy, seed=seed, events=events)
        machine.run_until(200)
        assert machine.version >= 200


@each_of(
    ("events", "message"),
    [
        ([(1.0, 5, False)], "worker 5 cannot die at 1 s: wanted a rank from 0 to 1"),
        ([(-1.0, 0, False)], "worker 0 cannot die at -1 s"),
        ([(1.0, 0, False), (2.0, 0, False)], "worker 0 cannot die at 2 s"),
        ([(1.0, 0, False), (2.0, 0, True), (3.0, 0, True)], "worker 0 cannot join at 3 s"),
        ([(900.0, 0, False)], "simulate more updates"),
        ([(0.1, 0, False), (0.1, 1, False)], "simulate more updates, or choose other times"),
    ],
)
def test_events_that_cannot_be_are_refused(events, message):
    with pytest.raises(DataError, match=message):
        simulate(
            workers_of(2), SimulatedHogwild(), updates=100, events=[Event(*one) for one in events]
        )


SLOW, FAST = Link.parse("100Mbit:50ms"), Link(1e12)


def cluster(link=SLOW, **more):
    return ClusterRounds(machines=2, link=link, n_params=1e6, **more)


def test_a_ring_all_reduce_takes_the_time_of_its_stages_and_rounds_a_tenth_of_the_link():
    assert SLOW.transfer_s(4e6) == pytest.approx(0.05 + 0.32)
    for machines in (2, 3, 8):
        stages = 2 * (machines - 1)
        expected = stages * (0.05 + 4e6 / machines * 8 / 100e6)
        assert SLOW.all_reduce_s(4e6, machines) == pytest.approx(expected)
        assert sent_bytes(4e6, machines) == pytest.approx(stages * 4e6 / machines)
    assert SLOW.round_s(4e6, 1) == 0
    every_s = SLOW.round_every_s(4e6, 2)
    assert SLOW.round_s(4e6, 2) <= 0.1 * every_s < SLOW.round_s(4e6, 2) + 0.1
    assert FAST.round_every_s(4, 2) == 1


@each_of(
    ("text", "link"),
    [
        ("100Mbit:50ms", (12.5e6, 0.05)), ("1gbit/s", (125e6, 0)),
        ("2.5Gbit:1s", (312.5e6, 1.0)),
        *((text, None) for text in ("", "fast", "0Mbit", "0.1", "inf", "1Gbit:soon")),
    ],
)  # fmt: skip
def test_a_link_is_read_or_refused_with_the_form(text, link):
    if link is None:
        with pytest.raises(ConfigError, match="wanted RATE or RATE:LATENCY"):
            Link.parse(text)
        return
    read = Link.parse(text)
    assert (read.bytes_per_s, read.latency_s) == pytest.approx(link)


@pytest.mark.parametrize("link", [FAST, SLOW, Link(1e5, 1.0)])
def test_workers_never_wait_for_rounds_by_the_clock(link):
    workers = [Worker(name="w", compute=times_of("constant", s)) for s in (0.25, 0.5, 0.25, 0.5)]
    assert simulate(workers, cluster(link)).gradients_per_s == pytest.approx(12, rel=0.01)


@each_of(
    ("strategy", "seconds", "rounds", "share", "sent"),
    [
        (cluster(), 105.0, 10, 10 * SLOW.round_s(4e6, 2) / 105, 10 * 4e6 / 105),
        (cluster(Link(1e6), round_every_s=1.0), 20.0, 4, 19 / 20, 4 * 4e6 / 20),  # 4 s each
    ],
)
def test_bytes_of_rounds_are_counted_also_of_those_that_follow_each_other(
    strategy, seconds, rounds, share, sent
):
    use = strategy.use(seconds)
    assert use["rounds"] == rounds
    assert (use["share"], use["bytes_per_s"]) == pytest.approx((share, sent))


BOWL = Quadratic((1.0, 0.5, 0.1))


def learned(strategy, workers):
    learner = SimulatedSGD(BOWL, lr=0.1)
    Simulation(workers_of(workers), strategy, learner=learner).run_until(30)
    return learner.model


def test_a_stale_gradient_is_that_of_the_parameters_read_and_others_are_gradient_descent():
    descent = (1 - 0.1 * np.array(BOWL.curvatures)) ** 30
    assert learned(SimulatedHogwild(), 1) == pytest.approx(descent)
    assert learned(SimulatedSync(), 4) == pytest.approx(descent)
    x, h = [np.ones(3)] * 3, np.array(BOWL.curvatures)
    for _ in range(30):  # x(t + 1) = x(t) - lr h x(t - 2), from the first read of all three on
        x.append(x[-1] - 0.1 * h * x[-3])
    assert learned(SimulatedRoundRobin(), 3) == pytest.approx(x[-1])


def test_the_time_to_a_loss_is_that_of_the_workers_that_there_are():
    four = workers_of(4, times_of("constant", 0.1))
    dead = [Event(0.05, rank, joins=False) for rank in (1, 2, 3)]
    free, alone = (
        best_time(four, SimulatedHogwild(), BOWL, 400, 1, events) for events in ((), dead)
    )
    assert alone > free


def test_a_toy_problem_gives_every_strategy_equally_many_gradients():
    config = SimulateConfig(
        workers=8, objective="quadratic", updates=200, strategies="hogwild,local_sgd,sync"
    )
    assert [row["target_s"] for row in compare(config)[1]] == [None] * 3
