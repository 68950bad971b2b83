from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ConfigError
from mlxhog.mad.winner import HOWS, scaled, unit_of
from mlxhog.models.mad.sequence import canonical, parse

BLOCKS = parse("mlstm swiglu slstm mlp")
FREE = parse("mlstm slstm swiglu")


def text(layers, depth, how, unit):
    return canonical(scaled(layers, depth, how, unit)).replace("(h4)", "")


def test_stacking_puts_whole_copies_on_top_of_each_other():
    once = "mlstm swiglu slstm mlp"
    assert text(BLOCKS, 8, "stack", 2) == f"{once} {once}"
    assert text(BLOCKS, 6, "stack", 2) == f"{once} mlstm swiglu"
    assert text(FREE, 7, "stack", 1) == "mlstm slstm swiglu mlstm slstm swiglu mlstm"


def test_stretching_repeats_every_block_where_it_stands():
    assert text(BLOCKS, 8, "stretch", 2) == ("mlstm swiglu mlstm swiglu slstm mlp slstm mlp")
    assert text(BLOCKS, 6, "stretch", 2) == "mlstm swiglu mlstm swiglu slstm mlp"
    assert text(BLOCKS, 8, "stretch", 1) == "mlstm mlstm swiglu swiglu slstm slstm mlp mlp"


def test_blocks_are_found_where_mixers_and_channel_maps_alternate():
    assert unit_of(BLOCKS) == 2
    assert unit_of(FREE) == 1
    assert unit_of(parse("swiglu mlstm")) == 1
    assert unit_of(parse("mlstm swiglu mlstm")) == 1


@given(copies=st.integers(1, 5), how=st.sampled_from(HOWS), unit=st.sampled_from([1, 2]))
def test_whole_multiples_keep_the_proportions_whatever_the_way(copies, how, unit):
    found = Counter(scaled(BLOCKS, copies * len(BLOCKS), how, unit))
    assert found == {layer: copies for layer in BLOCKS}


@given(depth=st.integers(3, 40))
def test_stretching_keeps_the_order_and_spreads_the_rest_evenly(depth):
    found = scaled(FREE, depth, "stretch", 1)
    counts = Counter(found)
    assert found == tuple(layer for layer in FREE for _ in range(counts[layer]))
    assert max(counts.values()) - min(counts.values()) <= 1


@given(how=st.sampled_from(HOWS))
def test_the_same_depth_changes_nothing(how):
    assert scaled(BLOCKS, 4, how, 2) == BLOCKS


@pytest.mark.parametrize(
    ("depth", "unit", "said"),
    [
        (3, 1, "depth 3 is less than the 4 layers there are"),
        (7, 2, "give 6 or 8, or --unit layer"),
    ],
)
def test_a_depth_that_cannot_be_is_answered_with_those_that_can(depth, unit, said):
    with pytest.raises(ConfigError, match=said):
        scaled(BLOCKS, depth, "stack", unit)
