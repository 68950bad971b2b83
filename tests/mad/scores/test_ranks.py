import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.scores.ranks import kendall, ranks, spearman

VALUES = st.lists(st.integers(0, 5), min_size=2, max_size=12)


def test_equal_values_share_their_mean_rank():
    assert ranks([30, 10, 10, 20]).tolist() == [4.0, 1.5, 1.5, 3.0]


def test_correlations_of_a_small_example_worked_by_hand():
    a, b = [1, 2, 3, 4], [1, 3, 2, 4]
    assert spearman(a, b) == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert kendall(a, b) == pytest.approx((5 - 1) / 6)  # 5 of 6 pairs in the same order


def test_ties_are_taken_out_of_kendalls_tau():
    # pairs: (1,2) tied in a; (1,3), (2,3) in the same order; so 2 / sqrt(2 * 3)
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))


@pytest.mark.parametrize("correlation", [spearman, kendall])
class TestBoth:
    @given(values=VALUES, data=st.data())
    def test_only_the_order_of_the_values_matters(self, correlation, values, data):
        other = data.draw(st.permutations(values))
        found = correlation(values, other)
        same = correlation([math.exp(x) for x in values], [3 * x - 7 for x in other])
        assert same == pytest.approx(found, nan_ok=True)

    @given(values=VALUES)
    def test_a_list_agrees_with_itself_and_opposes_its_reverse(self, correlation, values):
        if len(set(values)) == 1:
            assert math.isnan(correlation(values, values))
        else:
            assert correlation(values, values) == pytest.approx(1)
            assert correlation(values, [-x for x in values]) == pytest.approx(-1)

    def test_independent_orders_average_to_nothing(self, correlation):
        rng = np.random.default_rng(0)
        found = [correlation(rng.permutation(10), rng.permutation(10)) for _ in range(2000)]
        assert abs(np.mean(found)) < 0.03
