"""Supports as bitmaps; estimates from them are unbiased, and their intervals hold as promised."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog import _native
from mlxhog.errors import DataError, ShapeError
from mlxhog.theory import stats, supports
from mlxhog.theory.hypergraph import Hypergraph
from mlxhog.theory.supports import Supports
from tests.pairs import each_of
from tests.theory.bitmaps import of_lists, of_masks
from tests.tolerances import COVERAGE_OF_200

# -- supports as bitmaps: the same sets ------------------------------------------------------------


N = 43
sets = st.lists(st.sets(st.integers(0, N - 1)), max_size=12)


@given(sets)
def test_supports_keep_their_coordinates(samples):
    supports = of_lists(samples, N)
    assert supports.sizes().tolist() == [len(sample) for sample in samples]
    assert supports.counts.tolist() == [sum(v in sample for sample in samples) for v in range(N)]


@given(sets, sets)
def test_meetings_are_those_of_the_sets(samples, others):
    meetings = of_lists(samples, N).meetings(of_lists(others, N))
    assert meetings.tolist() == [sum(bool(a & b) for b in others) for a in samples]


def test_meetings_are_counted_wherever_they_are():
    n = 100_003
    one = of_lists([[n - 1], [5_000]], n)
    assert one.meetings(of_lists([[0, n - 1], [n - 2]], n)).tolist() == [1, 0]


def test_supports_that_are_none_are_refused():
    with pytest.raises(ShapeError, match=r"wanted \(samples, 2\) uint8"):
        Supports(np.zeros((1, 3), np.uint8), 9)
    with pytest.raises(ShapeError, match="do not meet"):
        of_lists([[0]], 9).meetings(of_lists([[0]], 10))
    with pytest.raises(ValueError, match="one width"):
        _native.bitmap_meetings(
            np.zeros((1, 3), np.uint8), np.zeros((1, 2), np.uint8), np.zeros(1, np.int64)
        )


# -- estimates from samples: unbiased, with intervals that hold as often as they say ---------------


RESAMPLES = 200


def rows(probabilities, count):
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

    def __init__(self, name):
        self.masks = POPULATIONS[name]
        self.n = self.masks.shape[1]
        graph = Hypergraph.from_lists([np.flatnonzero(row) for row in self.masks], self.n)
        self.delta, self.rho, self.omega = graph.delta, graph.rho, graph.omega
        self.shares = graph.edge_degrees / len(graph)
        self.p_conf = float(self.shares.mean())

    def draw(self, samples, seed):
        chosen = np.random.default_rng(seed).integers(0, len(self.masks), samples)
        return of_masks(self.masks[chosen])


@pytest.fixture(params=POPULATIONS)
def population(request):
    return Population(request.param)


@pytest.mark.slow
def test_the_interval_of_p_conf_holds_as_often_as_it_says(population):
    covered = 0
    for seed in range(RESAMPLES):
        estimate = supports.estimate_p_conf(population.draw(150, seed))
        covered += estimate.low <= population.p_conf <= estimate.high
    assert covered / RESAMPLES >= 0.95 - COVERAGE_OF_200.atol


@pytest.mark.slow
def test_the_interval_of_delta_holds_as_often_as_it_says(population):
    covered = 0
    for seed in range(RESAMPLES):
        estimate = supports.estimate_delta(population.draw(150, seed))
        covered += estimate.low <= population.delta <= estimate.high
    assert covered / RESAMPLES >= 0.95 - COVERAGE_OF_200.atol


@pytest.mark.slow
def test_the_bounds_of_rho_hold_as_often_as_they_say(population):
    covered = 0
    for seed in range(RESAMPLES):
        estimate = supports.estimate_rho(population.draw(150, seed), omega=population.omega)
        covered += estimate.low <= population.rho <= estimate.high
    assert covered / RESAMPLES >= 0.95


def test_choosing_the_busiest_coordinate_does_not_inflate_delta():
    population = Population("equally busy coordinates")
    draws = [population.draw(60, seed) for seed in range(RESAMPLES)]
    honest = np.mean([supports.estimate_delta(sample).value for sample in draws])
    largest = np.mean([sample.counts.max() / len(sample) for sample in draws])
    assert honest <= population.delta < largest


def test_p_conf_is_the_share_of_all_pairs_that_meet():
    estimate = supports.estimate_p_conf(of_lists([[0], [0, 1], [1], []], 2))
    assert estimate.value == pytest.approx(2 / 6)


def test_of_dense_gradients_every_quantity_is_one():
    dense = of_masks(np.ones((64, 1000), bool))
    for estimator in (supports.estimate_delta, supports.estimate_p_conf):
        estimate = estimator(dense)
        assert (estimate.value, estimate.high) == (1.0, 1.0)
        assert 0.88 < estimate.low < 1.0
    rho = supports.estimate_rho(dense)
    assert (rho.value, rho.high) == (1.0, 1.0)
    assert supports.estimate_omega(dense).value == 1000


@each_of("samples", [2, 3, 20, 1476])
@each_of("share", [0.0, 0.003, 0.3, 0.5, 0.97, 1.0])
def test_the_interval_of_pairs_is_never_wider_than_hoeffdings(samples, share):
    error = math.sqrt(math.log(2 / 0.05) / (2 * (samples // 2)))
    low = stats.pairs_low(share, samples, 0.025)
    high = stats.pairs_high(share, samples, 0.025)
    assert max(0.0, share - error) <= low <= share <= high <= min(1.0, share + error)


def test_the_interval_of_many_pairs_is_an_eighth_narrower_than_hoeffdings():
    error = math.sqrt(math.log(2 / 0.05) / (2 * 738))
    assert error == pytest.approx(0.05, abs=1e-4)  # the spec's S = 1476 for +-0.05
    low, high = (limit(0.5, 1476, 0.025) for limit in (stats.pairs_low, stats.pairs_high))
    assert high - low < 0.875 * 2 * error
    low, high = (limit(0.01, 1476, 0.025) for limit in (stats.pairs_low, stats.pairs_high))
    assert high - low < 0.2 * 2 * error


def test_where_all_pairs_agree_the_interval_is_that_of_disjoint_pairs():
    assert stats.pairs_low(1.0, 60, 0.025) == pytest.approx(0.025 ** (1 / 30))
    assert stats.pairs_low(1.0, 60, 0.025) == pytest.approx(stats.binomial_low(30, 30, 0.025))
    assert stats.pairs_high(0.0, 60, 0.025) == pytest.approx(1 - 0.025 ** (1 / 30))


def test_binomial_limits_are_those_whose_tails_are_the_risk():
    from scipy.stats import binom

    assert binom.sf(6, 20, stats.binomial_low(7, 20, 0.025)) == pytest.approx(0.025)
    assert binom.cdf(7, 20, stats.binomial_high(7, 20, 0.025)) == pytest.approx(0.025)
    assert stats.binomial_low(0, 20, 0.025) == 0.0
    assert stats.binomial_high(20, 20, 0.025) == 1.0


def test_too_few_samples_are_refused_with_how_many_it_takes():
    for estimator in (supports.estimate_p_conf, supports.estimate_rho, supports.estimate_delta):
        with pytest.raises(DataError, match="draw 4 or more"):
            estimator(of_lists([[0]], 4))
