"""A vote takes the most frequent layers of the best candidates; scaling keeps the proportions."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ConfigError
from mlxhog.mad.winner import scaled, unit_of, upper_part, vote
from mlxhog.models.mad.sequence import canonical, parse
from tests.pairs import each_of


def scored(*lines):
    return [(tuple(text.split()), score) for text, score in lines]


def test_every_slot_takes_the_layer_that_most_of_the_upper_part_have():
    winner = vote(
        scored(
            ("a x b y", 0.91),
            ("a x c y", 0.90),
            ("b x b z", 0.89),
            ("c z c z", 0.20),
            ("c z c z", 0.10),
        )
    )
    assert winner.layers == ("a", "x", "b", "y")
    assert list(winner.slots) == [
        {"a": 2, "b": 1},
        {"x": 3},
        {"b": 2, "c": 1},
        {"y": 2, "z": 1},
    ]
    assert [score for _, score in winner.voters] == [0.91, 0.90, 0.89]


@each_of(
    ("candidates", "top", "layers", "voters"),
    [
        ((("a", 0.5), ("b", 0.9)), 2, "b", 2),  # a tie goes to the higher mean score
        ((("a", 0.9), ("b", 0.5), ("a", 0.1), ("b", 0.8)), 4, "b", 4),
        ((("a", 0.9), ("b", 0.8), ("b", 0.1)), 1, "a", 1),
        ((("a", 0.9), ("b", 0.8), ("b", 0.1)), 9, "b", 3),
        # those of another depth than most do not vote
        ((("a x", 0.9), ("b x b x", 0.8), ("b x c x", 0.7), ("d x", 0.1)), 3, "b x b x", 2),
        ((("a x a x", 0.9), ("b x", 0.8)), 2, "a x a x", 1),
    ],
)
def test_the_best_candidates_of_the_most_frequent_depth_vote(candidates, top, layers, voters):
    winner = vote(scored(*candidates), top=top)
    assert winner.layers == tuple(layers.split())
    assert len(winner.voters) == voters


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
def test_the_upper_part_ends_where_the_scores_fall_apart(scores, upper):
    assert upper_part(scores) == upper


BLOCKS = parse("mlstm swiglu slstm mlp")
FREE = parse("mlstm slstm swiglu")


ONCE, HALF = "mlstm swiglu slstm mlp", "mlstm swiglu"


@each_of(
    ("layers", "depth", "how", "unit", "expected"),
    [
        (BLOCKS, 8, "stack", 2, f"{ONCE} {ONCE}"),
        (BLOCKS, 6, "stack", 2, f"{ONCE} {HALF}"),
        (FREE, 7, "stack", 1, "mlstm slstm swiglu mlstm slstm swiglu mlstm"),
        (BLOCKS, 8, "stretch", 2, f"{HALF} {HALF} slstm mlp slstm mlp"),
        (BLOCKS, 6, "stretch", 2, f"{HALF} {HALF} slstm mlp"),
        (BLOCKS, 8, "stretch", 1, "mlstm mlstm swiglu swiglu slstm slstm mlp mlp"),
    ],
)
def test_stacking_puts_copies_on_top_and_stretching_repeats_units_in_place(
    layers, depth, how, unit, expected
):
    assert (
        canonical(scaled(layers, depth, unit, stack=how == "stack")).replace("(h4)", "") == expected
    )


def test_blocks_are_found_where_mixers_and_channel_maps_alternate():
    assert unit_of(BLOCKS) == 2
    assert unit_of(FREE) == 1
    assert unit_of(parse("swiglu mlstm")) == 1
    assert unit_of(parse("mlstm swiglu mlstm")) == 1
    assert unit_of(parse("mlstm")) == 1
    assert unit_of(parse("canon mlstm canon swiglu canon slstm canon mlp")) == 4
    assert unit_of(parse("canon mlstm gated-conv swiglu")) == 1


@given(depth=st.integers(3, 40))
def test_stretching_keeps_the_order_and_spreads_the_rest_evenly(depth):
    result = scaled(FREE, depth, 1, stack=False)
    counts = Counter(result)
    assert result == tuple(layer for layer in FREE for _ in range(counts[layer]))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(
    ("depth", "unit", "message"),
    [
        (3, 1, "depth 3 is less than the 4 layers of the model"),
        (7, 2, "give 6 or 8, or --unit layer"),
    ],
)
def test_a_depth_that_cannot_be_is_answered_with_those_that_can(depth, unit, message):
    with pytest.raises(ConfigError, match=message):
        scaled(BLOCKS, depth, unit, stack=True)
