"""Simulated workers against closed forms."""

import pytest

from mlxhog.errors import ConfigError, DataError
from mlxhog.theory.simulator import simulate
from mlxhog.theory.simulator.schemes import (
    Hogwild,
    Locked,
    OuterLoop,
    RoundRobin,
    Sync,
)
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import Worker
from tests.tolerances import SIMULATED_RATE

SECOND = times_of("constant", 1.0)

LEAST, DELAY = 1.0, 2.0
ROUNDS = 4000
TIMES = {
    "constant": SECOND,
    "exponential": times_of("exponential", 0.0, 1.0),
    "shifted": times_of("exponential", LEAST, DELAY),
    "measured": times_of("recorded", 0.5, 0.5, 0.6, 3.0),
}


def workers_of(workers, compute, **costs):
    return [Worker(name="w", compute=compute, **costs) for _ in range(workers)]


def harmonic(k):
    return sum(1 / j for j in range(1, k + 1))


def close(value):
    return pytest.approx(value, rel=SIMULATED_RATE.of_largest)


@pytest.mark.parametrize(("workers", "time"), [*zip((1, 2, 4, 8), TIMES, strict=True)])
def test_the_mean_staleness_of_hogwild_is_the_number_of_the_others(workers, time):
    prediction = simulate(workers_of(workers, TIMES[time], read_s=0.1, apply_s=0.1), Hogwild())
    # Exact but for the gradients in flight when counting starts and ends.
    edge = workers * prediction.staleness.max / prediction.staleness.steps
    assert prediction.staleness.mean == pytest.approx(workers - 1, abs=edge)


def test_a_slow_worker_changes_who_is_stale_but_not_the_mean():
    mixed = [
        *workers_of(7, times_of("exponential", 0.5, 0.5)),
        *workers_of(1, times_of("exponential", 5.0, 5.0)),
    ]
    prediction = simulate(mixed, Hogwild(), updates=ROUNDS)
    assert prediction.staleness.mean == pytest.approx(7, abs=0.1)
    *fast, slow = prediction.workers
    assert slow.mean > 5 * max(worker.mean for worker in fast)
    assert slow.steps < min(worker.steps for worker in fast)


@pytest.mark.parametrize("workers", [1, 10])
def test_hogwild_loses_no_time_to_stragglers(workers):
    prediction = simulate(workers_of(workers, TIMES["shifted"]), Hogwild(), updates=ROUNDS)
    assert prediction.updates_per_s == close(workers / (LEAST + DELAY))
    assert prediction.efficiency == close(1)
    assert prediction.waiting_share == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_a_barrier_waits_for_the_slowest(workers):
    prediction = simulate(workers_of(workers, TIMES["shifted"]), Sync(), updates=ROUNDS)
    round_s = LEAST + DELAY * harmonic(workers)  # E[max of P]
    assert prediction.updates_per_s == close(1 / round_s)
    assert prediction.gradients_per_s == close(workers / round_s)
    assert prediction.efficiency == close((LEAST + DELAY) / round_s)
    assert prediction.staleness.max == 0


@pytest.mark.slow
@pytest.mark.parametrize("backups", [1, 7])
def test_backup_workers_shorten_the_round_and_waste_their_gradients(backups):
    prediction = simulate(workers_of(8, TIMES["shifted"]), Sync(backups=backups), updates=ROUNDS)
    round_s = LEAST + DELAY * (harmonic(8) - harmonic(backups))
    assert prediction.updates_per_s == close(1 / round_s)
    assert prediction.gradients_per_s == close((8 - backups) / round_s)
    assert prediction.wasted_share == pytest.approx(backups / 8)


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_one_lock_for_all_limits_the_speed_to_amdahls(workers):
    add = 0.25
    prediction = simulate(
        workers_of(workers, times_of("constant", 1.0 - add), apply_s=add), Locked()
    )
    assert prediction.updates_per_s == close(min(workers, 1 / add))
    straggling = workers_of(workers, times_of("exponential", 0.0, 1.0 - add), apply_s=add)
    speedup = simulate(straggling, Locked()).updates_per_s
    assert speedup <= (1 + SIMULATED_RATE.of_largest) * min(workers, 1 / add)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_round_robin_of_equal_workers_is_limited_by_compute_or_by_the_turns(workers):
    for handover in (0.01, 0.5):
        prediction = simulate(
            workers_of(workers, SECOND, read_s=0.1, apply_s=0.2),
            RoundRobin(handover),
        )
        period = max(1.3 + handover, workers * (0.2 + handover))
        assert prediction.updates_per_s == close(workers / period)


def test_averaged_runs_meet_once_per_period():
    prediction = simulate(
        workers_of(3, SECOND, read_s=0.5, apply_s=0.25),
        OuterLoop(period=4, round_s=1.0),
    )
    merge_s = (3 + 1) / (2 * 3) * 0.5 + 1.0  # each reads a share of 3 copies, and writes it
    assert prediction.updates_per_s == close(3 * 4 / (4 * 1.75 + merge_s))
    assert prediction.staleness.max == 0


@pytest.mark.parametrize("workers", [2, 4])
def test_more_workers_than_cores_share_them(workers):
    prediction = simulate(workers_of(workers, SECOND), Hogwild(), cores=2)
    assert prediction.updates_per_s == close(2)
    assert prediction.efficiency == close(2 / workers)


def test_a_worker_on_the_gpu_takes_no_core_from_the_others():
    gpu = Worker(name="mlx:gpu", compute=SECOND, on_core=False)
    prediction = simulate([gpu, *workers_of(2, SECOND)], Hogwild(), cores=2)
    assert prediction.updates_per_s == close(3)


@pytest.mark.parametrize("scheme", [Hogwild(), RoundRobin(), Sync(backups=1), OuterLoop(3)])
def test_the_same_seed_gives_the_same_prediction(scheme):
    workers = workers_of(3, TIMES["shifted"], apply_s=0.1)
    runs = [simulate(workers, scheme, updates=500, seed=seed) for seed in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[0].seconds != runs[2].seconds


def test_workers_and_machines_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="takes no time"):
        workers_of(1, times_of("constant", 0.0))
    with pytest.raises(DataError, match=r"apply_s = -1"):
        workers_of(1, SECOND, apply_s=-1)
    with pytest.raises(DataError, match="0 workers"):
        simulate([], Hogwild())
    with pytest.raises(DataError, match="cores = 0"):
        simulate(workers_of(1, SECOND), Hogwild(), cores=0)
    with pytest.raises(ConfigError, match="2 backup workers of 2: wanted 0 to 1"):
        simulate(workers_of(2, SECOND), Sync(backups=2))
    with pytest.raises(ConfigError, match="every 0 steps"):
        simulate(workers_of(2, SECOND), OuterLoop(0))
