"""Simulated workers against closed forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import DataError
from tests.tolerances import SIMULATED_RATE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulator(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("experiment.simulator")


def workers_of(simulator: Any, workers: int, compute_s: float = 1.0, **costs: float) -> list[Any]:
    return [simulator.Worker(name="w", compute_s=compute_s, **costs)] * workers


def close(value: float) -> object:
    return pytest.approx(value, rel=SIMULATED_RATE.of_largest)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_mean_staleness_is_the_number_of_the_others(simulator: Any, workers: int) -> None:
    prediction = simulator.simulate(workers_of(simulator, workers, read_s=0.1, apply_s=0.1))
    # Exact but for the gradients in flight when counting starts and ends.
    edge = workers * prediction.staleness.max / prediction.staleness.steps
    assert prediction.staleness.mean == pytest.approx(workers - 1, abs=edge)
    assert prediction.gradients_per_s == close(workers / 1.2)
    assert prediction.efficiency == close(1)


def test_a_slow_worker_changes_who_is_stale_but_not_the_mean(simulator: Any) -> None:
    mixed = [*workers_of(simulator, 7, 1.0), *workers_of(simulator, 1, 9.5)]
    prediction = simulator.simulate(mixed, updates=8000)
    assert prediction.staleness.mean == pytest.approx(7, abs=0.1)
    *fast, slow = prediction.workers
    assert slow.mean > 5 * max(worker.mean for worker in fast)
    assert slow.steps < min(worker.steps for worker in fast)


def test_workers_of_equal_speed_are_never_later_than_the_number_of_the_others(
    simulator: Any,
) -> None:
    assert simulator.simulate(workers_of(simulator, 6)).staleness.max == 5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.floats(0.1, 300))
def test_a_fair_share_is_all_that_is_asked_for_or_no_less_than_anyones(
    simulator: Any, demands: list[float], capacity: float
) -> None:
    shares = simulator.fair_shares(demands, capacity)
    assert sum(shares) == pytest.approx(min(capacity, sum(demands)))
    for share, demand in zip(shares, demands, strict=True):
        assert share <= demand
        assert share == demand or share >= max(shares) - 1e-9


@pytest.mark.parametrize("workers", [2, 4])
def test_more_workers_than_cores_share_them(simulator: Any, workers: int) -> None:
    prediction = simulator.simulate(workers_of(simulator, workers), cores=2)
    assert prediction.gradients_per_s == close(2)
    assert prediction.efficiency == close(2 / workers)


def test_memory_bandwidth_limits_workers_that_together_ask_for_more(simulator: Any) -> None:
    workers = workers_of(simulator, 8, compute_bytes=1e9)
    assert simulator.simulate(workers, bandwidth=8e9).gradients_per_s == close(8)
    assert simulator.simulate(workers, bandwidth=2e9).gradients_per_s == close(2)


def test_who_asks_for_little_bandwidth_gets_all_of_it(simulator: Any) -> None:
    assert simulator.fair_shares([1, 5, 9], 9) == [1, 4, 4]
    assert simulator.fair_shares([1, 2], 9) == [1, 2]
    assert sum(simulator.fair_shares([3, 3, 3, 3], 7)) == pytest.approx(7)
    assert simulator.speeds([10.0, 0.0], cores=None, bandwidth=5) == [0.5, 1.0]


def test_what_is_printed_is_named_a_prediction_and_lists_its_inputs(simulator: Any) -> None:
    prediction = simulator.simulate(workers_of(simulator, 2), cores=24, bandwidth=8e11)
    printed = json.loads(json.dumps(prediction.to_json()))
    assert set(printed) == {"prediction", "inputs"}
    assert printed["inputs"]["cores"] == 24
    assert printed["inputs"]["workers"][0]["compute_s"] == 1.0


@pytest.mark.parametrize(
    ("workers", "needed", "extrapolated"),
    [(1, 100, False), (3, 110, False), (4, 120, False), (7, 150, True)],
)
def test_time_to_a_loss_is_updates_at_the_predicted_staleness_over_their_rate(
    simulator: Any, workers: int, needed: float, extrapolated: bool
) -> None:
    prediction = simulator.simulate(workers_of(simulator, workers))
    answer = simulator.time_to_loss(prediction, {0: 100, 1: 100, 3: 120})
    assert answer.updates == pytest.approx(needed)
    assert answer.seconds == close(needed / workers)
    assert answer.extrapolated is extrapolated


def test_workers_and_machines_that_cannot_be_are_refused(simulator: Any) -> None:
    with pytest.raises(DataError, match="takes no time"):
        workers_of(simulator, 1, 0.0)
    with pytest.raises(DataError, match=r"apply_s = -1"):
        workers_of(simulator, 1, apply_s=-1)
    with pytest.raises(DataError, match="compute_s = nan"):
        workers_of(simulator, 1, float("nan"))
    with pytest.raises(DataError, match="0 workers"):
        simulator.simulate([])
    with pytest.raises(DataError, match="cores = 0"):
        simulator.simulate(workers_of(simulator, 1), cores=0)
    with pytest.raises(DataError, match="measured at no staleness"):
        simulator.time_to_loss(simulator.simulate(workers_of(simulator, 1)), {})
