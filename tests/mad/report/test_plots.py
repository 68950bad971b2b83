"""The Pareto front."""

from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.report.plots import front

POINTS = st.lists(
    st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), max_size=12
)


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def test_equal_points_share_their_place():
    assert front([(1.0, 0.5), (1.0, 0.5), (2.0, 0.5)]) == [0, 1]


@given(POINTS)
def test_the_front_is_exactly_what_nothing_dominates(points):
    expected = {i for i, b in enumerate(points) if not any(dominates(a, b) for a in points)}
    assert set(front(points)) == expected
