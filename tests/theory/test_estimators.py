"""Estimates from samples: unbiased, with intervals that hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxhog.errors import DataError
from mlxhog.theory import estimators
from mlxhog.theory.hypergraph import Hypergraph
from mlxhog.theory.supports import Supports
from tests.tolerances import COVERAGE_OF_200

pytestmark = pytest.mark.slow

RESAMPLES = 200


def rows(probabilities: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Examples that hold each coordinate independently with its probability."""
    return np.random.default_rng(0).random((count, len(probabilities))) < probabilities


# Every example is drawn with replacement, so a "population" is a distribution known exactly.
POPULATIONS = {
    "Zipf words": rows(1 / np.arange(2, 302) ** 1.1, 1500),
    "rare coordinates": rows(np.full(400, 0.002), 1500),
    "equally busy coordinates": rows(np.full(40, 0.1), 1500),
    "one coordinate in all": rows(np.append(np.full(30, 0.01), 1.0), 1500),
    "some examples meet many": np.concatenate(
        [rows(np.full(300, 0.003), 1450), rows(np.full(300, 0.3), 50)]
    ),
}


class Population:
    """What is true of independent draws from a set of examples."""

    def __init__(self, name: str) -> None:
        self.masks = POPULATIONS[name]
        self.n = self.masks.shape[1]
        graph = Hypergraph.from_lists([np.flatnonzero(row) for row in self.masks], self.n)
        self.delta, self.rho, self.omega = graph.delta, graph.rho, graph.omega
        self.shares = graph.edge_degrees / len(graph)
        self.p_conf = float(self.shares.mean())

    def draw(self, samples: int, seed: int) -> Supports:
        chosen = np.random.default_rng(seed).integers(0, len(self.masks), samples)
        return Supports.from_masks(self.masks[chosen], self.n)


@pytest.fixture(params=POPULATIONS)
def population(request: pytest.FixtureRequest) -> Population:
    return Population(request.param)


def test_the_interval_of_p_conf_holds_as_often_as_it_says(population: Population) -> None:
    held = 0
    for seed in range(RESAMPLES):
        found = estimators.estimate_p_conf(population.draw(150, seed))
        held += found.low <= population.p_conf <= found.high
    assert held / RESAMPLES >= 0.95 - COVERAGE_OF_200.atol


def test_the_interval_of_delta_holds_as_often_as_it_says(population: Population) -> None:
    held = 0
    for seed in range(RESAMPLES):
        found = estimators.estimate_delta(population.draw(150, seed))
        held += found.low <= population.delta <= found.high
    assert held / RESAMPLES >= 0.95 - COVERAGE_OF_200.atol


def test_the_bounds_and_the_quantile_of_rho_hold_as_often_as_they_say(
    population: Population,
) -> None:
    held, below = 0, 0
    for seed in range(RESAMPLES):
        found = estimators.estimate_rho(population.draw(150, seed), omega=population.omega)
        held += found.low <= population.rho <= found.high
        assert found.quantile is not None
        below += (population.shares > found.quantile.value).mean() <= found.quantile.share_above
    assert held / RESAMPLES >= 0.95
    assert below / RESAMPLES >= 0.95


def test_the_quantile_of_omega_holds_as_often_as_it_says(population: Population) -> None:
    sizes, below = population.masks.sum(axis=1), 0
    for seed in range(RESAMPLES):
        found = estimators.estimate_omega(population.draw(150, seed))
        assert found.low == found.value <= population.omega <= found.high
        assert found.quantile is not None
        below += (sizes > found.value).mean() <= found.quantile.share_above
    assert below / RESAMPLES >= 0.95 - COVERAGE_OF_200.atol


def test_choosing_the_busiest_coordinate_does_not_inflate_delta() -> None:
    population = Population("equally busy coordinates")
    draws = [population.draw(60, seed) for seed in range(RESAMPLES)]
    honest = np.mean([estimators.estimate_delta(supports).value for supports in draws])
    largest = np.mean([supports.counts.max() / len(supports) for supports in draws])
    assert honest <= population.delta < largest


def test_p_conf_is_the_share_of_all_pairs_that_meet() -> None:
    found = estimators.estimate_p_conf(Supports.from_lists([[0], [0, 1], [1], []], 2))
    assert found.value == pytest.approx(2 / 6)


def test_of_dense_gradients_every_quantity_is_one() -> None:
    dense = Supports.from_masks(np.ones((64, 1000), bool), 1000)
    for estimate in (estimators.estimate_delta, estimators.estimate_p_conf):
        found = estimate(dense)
        assert (found.value, found.high) == (1.0, 1.0)
        assert 0.88 < found.low < 1.0
    rho = estimators.estimate_rho(dense)
    assert (rho.value, rho.high) == (1.0, 1.0)
    assert estimators.estimate_omega(dense).value == 1000


@pytest.mark.parametrize("samples", [2, 3, 20, 1476])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.3, 0.5, 0.97, 1.0])
def test_the_interval_of_pairs_is_never_wider_than_hoeffdings(samples: int, share: float) -> None:
    error = math.sqrt(math.log(2 / 0.05) / (2 * (samples // 2)))
    low = estimators.pairs_low(share, samples, 0.025)
    high = estimators.pairs_high(share, samples, 0.025)
    assert max(0.0, share - error) <= low <= share <= high <= min(1.0, share + error)


def test_the_interval_of_many_pairs_is_an_eighth_narrower_than_hoeffdings() -> None:
    error = math.sqrt(math.log(2 / 0.05) / (2 * 738))
    assert error == pytest.approx(0.05, abs=1e-4)  # the spec's S = 1476 for +-0.05
    low, high = (limit(0.5, 1476, 0.025) for limit in (estimators.pairs_low, estimators.pairs_high))
    assert high - low < 0.875 * 2 * error
    low, high = (
        limit(0.01, 1476, 0.025) for limit in (estimators.pairs_low, estimators.pairs_high)
    )
    assert high - low < 0.2 * 2 * error


def test_where_all_pairs_agree_the_interval_is_that_of_disjoint_pairs() -> None:
    assert estimators.pairs_low(1.0, 60, 0.025) == pytest.approx(0.025 ** (1 / 30))
    assert estimators.pairs_low(1.0, 60, 0.025) == pytest.approx(
        estimators.binomial_low(30, 30, 0.025)
    )
    assert estimators.pairs_high(0.0, 60, 0.025) == pytest.approx(1 - 0.025 ** (1 / 30))


def test_binomial_limits_are_those_whose_tails_are_the_risk() -> None:
    from scipy.stats import binom

    assert binom.sf(6, 20, estimators.binomial_low(7, 20, 0.025)) == pytest.approx(0.025)
    assert binom.cdf(7, 20, estimators.binomial_high(7, 20, 0.025)) == pytest.approx(0.025)
    assert estimators.binomial_low(0, 20, 0.025) == 0.0
    assert estimators.binomial_high(20, 20, 0.025) == 1.0


def test_too_few_samples_are_refused_with_how_many_it_takes() -> None:
    one = Supports.from_lists([[0]], 4)
    with pytest.raises(DataError, match="draw 2 or more"):
        estimators.estimate_p_conf(one)
    with pytest.raises(DataError, match="draw 4 or more"):
        estimators.estimate_rho(one)
    with pytest.raises(DataError, match="draw 1 or more"):
        estimators.estimate_omega(Supports.from_lists([], 4))
    with pytest.raises(DataError, match=r"confidence 95: wanted a number between 0 and 1"):
        estimators.estimate_omega(one, confidence=95)
