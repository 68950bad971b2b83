"""The numbers of plots: importance of the slots, and the Pareto front."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.report.plots import NOTHING, draw_slots, front, slots
from mlxhog.report.charts import LIGHT

A, B = "mlstm", "gla"


def test_a_slot_that_decides_everything_has_all_of_the_variance():
    scored = [((a, b), 0.9 if a == A else 0.4) for a, b in itertools.product((A, B), (A, B))]
    first, second = slots(scored)
    assert (first.number, second.number) == (1, 2)
    assert first.share == pytest.approx(1.0)
    assert second.share == pytest.approx(0.0)
    assert list(first.means.items()) == [(A, pytest.approx(0.9)), (B, pytest.approx(0.4))]


def test_shares_of_a_grid_without_interactions_add_up_to_one():
    worth = {A: 0.3, B: 0.1}
    scored = [((a, b), worth[a] + 2 * worth[b]) for a, b in itertools.product(worth, worth)]
    first, second = slots(scored)
    assert first.share == pytest.approx(0.2)  # squares of 0.1 and 0.2
    assert second.share == pytest.approx(0.8)


def test_a_slot_without_a_choice_explains_nothing():
    assert [slot.share for slot in slots([((A,), 0.5), ((A,), 0.7)])] == [0.0]
    assert [slot.share for slot in slots([((A, B), 0.5)])] == [0.0, 0.0]


def test_a_shallower_candidate_has_nothing_in_the_slots_beyond_its_depth():
    _, second = slots([((A, B), 0.9), ((A,), 0.4)])
    assert second.means == {B: 0.9, NOTHING: 0.4}


def test_a_slot_that_only_goes_along_with_another_is_not_given_what_that_did():
    rng = np.random.default_rng(0)
    scored = []
    for _ in range(60):
        first = rng.choice([A, B])
        second = first if rng.random() < 0.8 else rng.choice([A, B])
        scored.append(((first, second), (0.9 if first == A else 0.4) + rng.normal(0, 0.02)))
    first, second = slots(scored)
    assert abs(second.means[A] - second.means[B]) > 0.2  # it seems to matter
    assert first.share > 0.9
    assert second.share < 0.02


@pytest.mark.parametrize("candidates", [15, 30, 60])
def test_noise_alone_is_given_to_no_slot_however_few_candidates_there_are(candidates: int):
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(100):
        noise = rng.normal(0.5, 0.1, candidates)
        shares += [
            slot.share for slot in slots([(tuple(rng.choice(list("abcd"), 4)), x) for x in noise])
        ]
    # Three effects of as many candidates: the variance between a slot's groups is this by chance.
    assert np.mean(np.nan_to_num(shares)) < 0.6 * 3 / (candidates - 1)


def test_candidates_that_are_too_few_to_tell_slots_apart_give_no_shares():
    few = [((A, A), 0.5), ((B, A), 0.6), ((A, B), 0.7)]
    assert all(math.isnan(slot.share) for slot in slots(few))
    assert [slot.means for slot in slots(few)][0][A] == pytest.approx(0.6)


def test_nothing_scored_has_no_slots():
    assert slots([]) == []


def test_few_candidates_are_drawn_without_bars():
    (heat,) = draw_slots(slots([((A, B), 0.9), ((B, A), 0.4)]), LIGHT).axes
    assert heat.get_xlabel() == "slot"
    grid = [((a, b), 0.9 if a == A else 0.4) for a, b in itertools.product((A, B), (A, B))]
    bars, heat = draw_slots(slots(grid), LIGHT).axes
    assert bars.get_ylabel() == "share of variance"


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
