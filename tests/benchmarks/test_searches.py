"""Searched step sizes: a worse one on either side, or an error."""

import math

import pytest


@pytest.fixture(scope="module")
def searches(load):
    return load("experiment.searches")


@pytest.mark.parametrize("best", [0.01, 0.3, 40.0])
def test_a_search_ends_with_a_worse_step_size_on_either_side(searches, best):
    found = searches.search((0.5, 1.0), lambda rate: abs(math.log(rate / best)), most=20)
    assert found.missing_side == 0
    assert abs(math.log(found.best / best)) <= math.log(2.0)
    assert min(found.costs) < found.best < max(found.costs)


def test_a_training_that_diverges_is_worse_than_any(searches):
    found = searches.search((0.5, 1.0), lambda rate: 1 / rate if rate < 3 else math.nan)
    assert found.best == 2.0
    assert found.to_json()["4"] is None


def test_a_search_whose_best_stays_at_an_edge_is_refused(searches):
    with pytest.raises(SystemExit, match="no step size of 1 to 64 has a worse one on either side"):
        searches.search((1.0, 2.0), lambda rate: 1 / rate, most=5)


@pytest.mark.parametrize(("costs", "side"), [
    ({1.0: 3, 2.0: 2, 4.0: 1}, 1),
    ({1.0: 1, 2.0: 2, 4.0: 3}, -1),
    ({1.0: 1, 2.0: 1, 4.0: 3}, -1),
    ({1.0: 2, 2.0: 1, 4.0: None}, 0),
])  # fmt: skip
def test_a_step_size_at_an_edge_is_noticed(searches, costs, side):
    assert searches.Search(costs).missing_side == side
