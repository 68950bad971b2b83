"""Supports as bitmaps: their quantities, and the interval of conflict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mlxhog.theory.supports import Supports

N = 43
sets = st.lists(st.sets(st.integers(0, N - 1)), max_size=12)


def of_masks(masks):
    """Supports of boolean rows, (samples, n)."""
    return Supports(np.packbits(masks, axis=1, bitorder="little"), masks.shape[1])


def of_lists(supports, n):
    """Supports of coordinates in [0, n), in any order."""
    masks = np.zeros((len(supports), n), bool)
    for mask, support in zip(masks, supports, strict=True):
        mask[list(support)] = True
    return of_masks(masks)


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
