import itertools

import pytest

from mlxhog.mad.report.importance import NOTHING, slots

A, B = "mlstm", "gla"


def test_a_slot_that_decides_everything_has_all_of_the_variance():
    scored = [((a, b), 0.9 if a == A else 0.4) for a, b in itertools.product((A, B), (A, B))]
    first, second = slots(scored)
    assert (first.number, second.number) == (1, 2)
    assert first.share == pytest.approx(1.0)
    assert second.share == pytest.approx(0.0)
    assert list(first.means.items()) == [(A, pytest.approx(0.9)), (B, pytest.approx(0.4))]
    assert first.counts == {A: 2, B: 2}


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


def test_nothing_scored_has_no_slots():
    assert slots([]) == []
