"""The 1/k schedule keeps its promise (spec hogwild.md 2.3 and 7, test 8)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mlxhog.errors import DataError
from mlxhog.theory import backoff
from mlxhog.theory.backoff import Backoff

pytestmark = pytest.mark.slow

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/tiny_hypergraph.json").read_text())
PROBLEM = Backoff(theta=0.2, c=2.0, floor=3.0, start=50.0)


def errors(plan: Backoff, updates: int) -> np.ndarray:
    """The error after each update where the recursion of the analysis holds with equality."""
    error, found = plan.start, np.empty(updates + 1)
    for k in range(updates + 1):
        found[k] = error
        gamma = plan.step_size(k)
        error = (1 - plan.c * gamma) * (error - gamma * plan.floor) + gamma * plan.floor
    return found


def test_the_best_beta_and_its_bracket_are_the_recorded_ones() -> None:
    assert pytest.approx(GOLDEN["beta_star"], abs=1e-4) == backoff.BETA
    assert backoff.bracket(backoff.BETA) == pytest.approx(GOLDEN["f_star"], rel=1e-6)
    assert backoff.bracket(backoff.BETA) == pytest.approx(1 / backoff.BETA, rel=1e-9)


def test_each_stage_is_one_over_beta_times_as_long_as_the_one_before() -> None:
    starts = [PROBLEM.stage_start(stage) for stage in range(8)]
    lengths = np.diff(starts)[1:]  # without the burn-in
    assert lengths[1:] / lengths[:-1] == pytest.approx(1 / backoff.BETA)


def test_each_stage_takes_beta_times_the_step_of_the_one_before() -> None:
    steps = [PROBLEM.step_size(math.ceil(PROBLEM.stage_start(stage))) for stage in range(8)]
    assert steps == pytest.approx([0.1 * backoff.BETA**stage for stage in range(8)])


def test_the_error_at_the_end_of_every_stage_is_at_most_twice_its_floor() -> None:
    ends = [math.ceil(PROBLEM.stage_start(stage + 1)) for stage in range(8)]
    found = errors(PROBLEM, ends[-1])
    for stage, end in enumerate(ends):
        assert found[end] <= 2 * PROBLEM.step_size(end - 1) * PROBLEM.floor, stage


@pytest.mark.parametrize("beta", [0.2, backoff.BETA, 0.7])
def test_the_error_stays_below_the_promised_rate(beta: float) -> None:
    plan = Backoff(theta=0.1, c=1.0, floor=1.0, start=20.0, beta=beta)
    found = errors(plan, 100_000)
    ends = [
        math.ceil(plan.stage_start(stage))
        for stage in range(2, 40)
        if plan.stage_start(stage) < 100_000
    ]
    assert all(found[end] <= plan.error_bound(end) for end in ends)
    after = np.arange(plan.burn_in + 1, 100_001)
    assert all(found[k] <= plan.error_bound(int(k)) / beta for k in after)


def test_the_error_falls_as_one_over_k() -> None:
    found = errors(Backoff(theta=0.2, c=1.0, floor=1.0, start=1.0), 10**6)
    ks = np.unique(np.geomspace(1e3, 1e6, 2000).astype(int))
    slope = np.polyfit(np.log(ks), np.log(found[ks]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_nothing_is_promised_during_the_burn_in() -> None:
    assert PROBLEM.error_bound(PROBLEM.burn_in) == math.inf
    assert errors(PROBLEM, PROBLEM.burn_in)[-1] <= 2 * 0.1 * PROBLEM.floor


def test_a_start_that_is_good_enough_needs_no_burn_in() -> None:
    assert Backoff(theta=0.5, c=1.0, floor=1.0, start=0.1).burn_in == 0


@pytest.mark.parametrize("name", ["theta", "beta", "c", "floor", "start"])
def test_numbers_outside_their_range_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} = 0"):
        Backoff(**{**dict(theta=0.2, c=2.0, floor=3.0, start=50.0), name: 0})
