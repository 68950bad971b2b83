"""Supports as bitmaps; the interval of conflict holds as promised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mlxhog.theory.hypergraph import Hypergraph
from tests.theory.bitmaps import of_lists, of_masks
from tests.tolerances import COVERAGE_OF_200

N = 43
sets = st.lists(st.sets(st.integers(0, N - 1)), max_size=12)


@given(sets, sets)
def test_sizes_counts_and_meetings_are_those_of_the_sets(samples, others):
    supports = of_lists(samples, N)
    assert supports.sizes.tolist() == [len(sample) for sample in samples]
    assert supports.counts.tolist() == [sum(v in sample for sample in samples) for v in range(N)]
    meetings = supports.meetings(of_lists(others, N))
    assert meetings.tolist() == [sum(bool(a & b) for b in others) for a in samples]


def test_meetings_are_counted_wherever_they_are():
    n = 100_003
    one = of_lists([[n - 1], [5_000]], n)
    assert one.meetings(of_lists([[0, n - 1], [n - 2]], n)).tolist() == [1, 0]


def rows(probabilities, count):
    """Examples that hold each coordinate independently with its probability."""
    return np.random.default_rng(0).random((count, len(probabilities))) < probabilities


# Every example is drawn with replacement, so a "population" is a distribution known exactly.
POPULATIONS = {
    "Zipf words": rows(1 / np.arange(2, 302) ** 1.1, 1500),
    "some examples meet many": np.concatenate(
        [rows(np.full(300, 0.003), 1450), rows(np.full(300, 0.3), 50)]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_interval_of_p_conf_holds_as_often_as_it_says(name):
    masks = POPULATIONS[name]
    graph = Hypergraph.from_lists([np.flatnonzero(row) for row in masks], masks.shape[1])
    p_conf, covered = float((graph.edge_degrees / len(graph)).mean()), 0
    for seed in range(200):
        chosen = np.random.default_rng(seed).integers(0, len(masks), 150)
        low, high = of_masks(masks[chosen]).p_conf_interval
        covered += low <= p_conf <= high
    assert covered / 200 >= 0.95 - COVERAGE_OF_200.atol


def test_the_interval_is_clopper_and_pearsons_of_half_as_many_pairs():
    half = of_lists([[k % 2] for k in range(40)], 2)
    pairs, (low, high) = 20, half.p_conf_interval
    assert 0 < low < half.p_conf < high < 1
    never = of_lists([[k] for k in range(40)], 40)
    assert never.p_conf_interval == (0.0, pytest.approx(1 - 0.025 ** (1 / pairs)))
    assert binom.sf(19, pairs, of_lists([[0]] * 40, 1).p_conf_interval[0]) == pytest.approx(0.025)


def test_a_sample_shows_the_largest_of_its_own_supports():
    some = of_lists([[0], [0, 1], [1, 2, 3], []], 4)
    assert (some.omega, some.delta) == (3, 0.5)
    assert some.rho == pytest.approx(2 / 3)
    assert some.p_conf == pytest.approx(2 / 6)
    dense = of_masks(np.ones((64, 1000), bool))
    assert (dense.omega, dense.delta, dense.rho, dense.p_conf) == (1000, 1.0, 1.0, 1.0)
