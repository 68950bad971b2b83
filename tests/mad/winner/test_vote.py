import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.winner import upper_part, vote


def scored(*lines: tuple[str, float]):
    return [(tuple(text.split()), score) for text, score in lines]


def test_every_slot_takes_the_layer_that_most_of_the_upper_part_have():
    found = vote(
        scored(
            ("a x b y", 0.91),
            ("a x c y", 0.90),
            ("b x b z", 0.89),
            ("c z c z", 0.20),
            ("c z c z", 0.10),
        )
    )
    assert found.layers == ("a", "x", "b", "y")
    assert [dict(slot.votes) for slot in found.slots] == [
        {"a": 2, "b": 1},
        {"x": 3},
        {"b": 2, "c": 1},
        {"y": 2, "z": 1},
    ]
    assert [score for _, score in found.voters] == [0.91, 0.90, 0.89]


def test_a_tie_goes_to_the_layer_whose_candidates_score_higher():
    assert vote(scored(("a", 0.5), ("b", 0.9)), top=2).layers == ("b",)
    assert vote(scored(("a", 0.9), ("b", 0.5), ("a", 0.1), ("b", 0.8)), top=4).layers == ("b",)


def test_the_k_best_vote_where_a_number_is_given():
    candidates = scored(("a", 0.9), ("b", 0.8), ("b", 0.1))
    assert vote(candidates, top=1).layers == ("a",)
    assert vote(candidates, top=3).layers == ("b",)
    assert len(vote(candidates, top=9).cluster) == 3


def test_candidates_of_another_depth_than_most_do_not_vote():
    found = vote(scored(("a x", 0.9), ("b x b x", 0.8), ("b x c x", 0.7), ("d x", 0.1)), top=3)
    assert found.layers == ("b", "x", "b", "x")
    assert (len(found.voters), len(found.cluster)) == (2, 3)


def test_of_depths_with_as_many_candidates_that_of_the_best_is_taken():
    assert vote(scored(("a x a x", 0.9), ("b x", 0.8)), top=2).layers == ("a", "x", "a", "x")


@pytest.mark.parametrize(
    ("scores", "upper"),
    [
        ([0.9], 1),
        ([0.9, 0.1], 2),
        ([0.5, 0.5, 0.5, 0.5], 4),
        ([0.9, 0.88, 0.3, 0.29, 0.1], 2),
        ([0.9, 0.3, 0.3], 1),
        # sums of squares by hand: 1 | 3 is 0.0467, 2 | 2 is 0.01, 3 | 1 is 0.0467
        ([0.8, 0.7, 0.4, 0.3], 2),
    ],
)
def test_the_upper_part_ends_where_the_scores_fall_apart(scores: list[float], upper: int):
    assert upper_part(scores) == upper


@given(
    scores=st.lists(st.integers(0, 20), min_size=3, max_size=12),
    factor=st.integers(1, 9),
    shift=st.integers(-50, 50),
)
def test_the_upper_part_does_not_depend_on_scale_or_origin(
    scores: list[int], factor: int, shift: int
):
    falling = sorted(scores, reverse=True)
    moved = [factor * score + shift for score in falling]
    if len(set(falling)) == 1:
        assert upper_part(falling) == len(falling)
        return

    def within(k: int) -> float:  # twice the sum of squared distances within both parts, exactly
        return sum(
            (sum((a - b) ** 2 for a in part for b in part) / len(part))
            for part in (falling[:k], falling[k:])
        )

    least = min(map(within, range(1, len(falling))))
    assert within(upper_part(falling)) == pytest.approx(least)
    assert within(upper_part(moved)) == pytest.approx(least)
