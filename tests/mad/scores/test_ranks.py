import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.report.ranking import ranks, spearman

VALUES = st.lists(st.integers(0, 5), min_size=2, max_size=12)


def test_equal_values_share_their_mean_rank():
    assert ranks([30, 10, 10, 20]).tolist() == [4.0, 1.5, 1.5, 3.0]


def test_the_correlation_of_a_small_example_worked_by_hand():
    a, b = [1, 2, 3, 4], [1, 3, 2, 4]
    assert spearman(a, b) == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / (n (n^2 - 1))


@given(values=VALUES, data=st.data())
def test_only_the_order_of_the_values_matters(values, data):
    other = data.draw(st.permutations(values))
    found = spearman(values, other)
    same = spearman([math.exp(x) for x in values], [3 * x - 7 for x in other])
    assert same == pytest.approx(found, nan_ok=True)


@given(values=VALUES)
def test_a_list_agrees_with_itself_and_opposes_its_reverse(values):
    if len(set(values)) == 1:
        assert math.isnan(spearman(values, values))
    else:
        assert spearman(values, values) == pytest.approx(1)
        assert spearman(values, [-x for x in values]) == pytest.approx(-1)


def test_independent_orders_average_to_nothing():
    rng = np.random.default_rng(0)
    found = [spearman(rng.permutation(10), rng.permutation(10)) for _ in range(2000)]
    assert abs(np.mean(found)) < 0.03
