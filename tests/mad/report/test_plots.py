"""The numbers of plots: scores by slot, and the Pareto front."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.report.plots import NOTHING, draw_slots, front, slots
from mlxhog.report.charts import LIGHT

A, B = "mlstm", "gla"


def test_a_slot_has_the_mean_score_of_each_layer_in_it():
    scored = [((a, b), 0.9 if a == A else 0.4) for a, b in itertools.product((A, B), (A, B))]
    first, second = slots(scored)
    assert second == pytest.approx({A: 0.65, B: 0.65})
    assert first == pytest.approx({A: 0.9, B: 0.4})


def test_a_shallower_candidate_has_nothing_in_the_slots_beyond_its_depth():
    _, second = slots([((A, B), 0.9), ((A,), 0.4)])
    assert second == {B: 0.9, NOTHING: 0.4}


def test_nothing_scored_has_no_slots():
    assert slots([]) == []


def test_slots_are_drawn_as_a_table():
    (heat,) = draw_slots(dict(enumerate(slots([((A, B), 0.9), ((B, A), 0.4)]))), LIGHT).axes
    assert heat.get_xlabel() == "slot"


POINTS = st.lists(
    st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), max_size=12
)


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def test_the_front_is_what_is_cheapest_for_its_score():
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (4.0, 0.9), (2.0, 0.8)]
    assert front(points) == [1, 4, 0]


def test_equal_points_share_their_place():
    assert front([(1.0, 0.5), (1.0, 0.5), (2.0, 0.5)]) == [0, 1]


@given(POINTS)
def test_the_front_is_exactly_what_nothing_dominates(points):
    expected = {i for i, b in enumerate(points) if not any(dominates(a, b) for a in points)}
    assert set(front(points)) == expected


@given(POINTS)
def test_along_the_front_cost_and_score_rise_together(points):
    results = [points[i] for i in front(points)]
    assert results == sorted(results)
