"""What experiments on language models compute from their trainings, and one of them as it runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def training(load: Any) -> Any:
    """A loss that falls in straight lines: at 8 after the first step, at 1 after 700."""
    return load("experiment.language").Training(
        seconds=[0.0, 6.0, 12.0, 14.0],
        steps=[0.0, 300.0, 600.0, 700.0],
        bits=[8.0, 5.0, 2.0, 1.0],
        tokens_per_s=25_600.0,
        staleness=1.0,
        max_staleness=1,
        lost_update_rate=0.0,
        costs_s={},
    )


def test_time_and_gradients_to_a_loss_lie_on_the_line_between_two_looks(training: Any) -> None:
    assert training.steps_to(4.25) == pytest.approx(375.0)
    assert training.seconds_to(4.25) == pytest.approx(7.5)
    assert training.steps_to(8.0) == 0.0
    assert training.seconds_to(0.5) == math.inf
    assert training.at_seconds(13.0) == pytest.approx(1.5)


def test_what_staleness_costs_is_counted_in_gradients_of_serial_trainings(load: Any) -> None:
    cost = load("staleness").times_serial
    serial = [(100, 4.0), (400, 2.0), (1600, 1.0)]
    assert cost(serial, 400, 2.0) == pytest.approx(1.0)
    assert cost(serial, 400, 4.0) == pytest.approx(4.0)
    assert cost(serial, 1600, 1.5) == pytest.approx(2.0)  # 800 gradients, by their logarithm


def test_the_slowest_of_many_exponential_delays_is_that_of_order_statistics(load: Any) -> None:
    stragglers, rng = load("stragglers"), np.random.default_rng(1)
    drawn = stragglers.slowest(lambda shape: 1.0 + rng.exponential(0.5, shape), 1000, 2000)
    assert stragglers.expected(1.0, 0.5, 1000) == pytest.approx(1 + 0.5 * 7.485, rel=1e-4)
    assert drawn == pytest.approx(stragglers.expected(1.0, 0.5, 1000), rel=0.01)


def test_steps_fit_the_model_where_they_are_drawn_from_it_and_not_where_one_in_ten_is_slow(
    load: Any,
) -> None:
    misfit = load("stragglers").misfit
    exponential = 0.02 + np.random.default_rng(1).exponential(0.01, 2000)
    assert misfit(exponential, 0.02, 0.01) < 0.1
    two_speeds = np.array([0.02] * 90 + [0.2] * 10)
    assert misfit(two_speeds, 0.02, float(two_speeds.mean()) - 0.02) > 0.1


def test_a_gate_at_the_push_makes_who_is_too_late_wait_for_ever(load: Any) -> None:
    waits = load("late_gradients").waits_for_ever
    assert [waits(slack) for slack in (0, 1, 4, 8)] == [True] * 4
    assert not waits(10**6)


@pytest.mark.parametrize(("lowest", "lr"), [(3.0, 2.0), (0.3, 0.25), (1.0, 1.0)])
def test_a_step_size_is_found_by_doubling_and_halving(load: Any, lowest: float, lr: float) -> None:
    assert load("experiment.searches").descend(lambda x: abs(x - lowest), 1.0) == lr
