"""A flat list of layers is a model's identity, for any spelling."""

from dataclasses import fields
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers import known, make
from mlxhog.models.mad.sequence import MOST_LAYERS, canonical, parse
from mlxhog.models.registry import load_candidate
from tests.pairs import each_of

VALUES = {
    int: st.integers(0, 1000),
    float: st.floats(-1e30, 1e30),
    bool: st.booleans(),
    str: st.sampled_from(["none", "true", "mad", "top-k", "8"]),
    int | None: st.none() | st.integers(1, 1000),
    float | None: st.none() | st.floats(-1e30, 1e30),
}


@st.composite
def layers(draw):
    """Any layer with any numbers, possible at a width or not."""
    layer = draw(st.sampled_from(sorted(known().values(), key=lambda layer: layer.name)))
    types, specs = get_type_hints(layer), options(layer)
    names = [field.name for field in fields(layer)]
    chosen = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    words = {name: st.sampled_from(specs[name].choices) for name in chosen if specs[name].choices}
    result = layer(**{name: draw(words.get(name, VALUES[types[name]])) for name in chosen})
    return result


@given(st.lists(layers(), min_size=1, max_size=8).map(tuple))
def test_the_canonical_text_of_any_list_reads_back_as_the_list(made):
    assert parse(canonical(made)) == made


@given(st.text("()*,= h4mlstm swiglu2.-\tinner=none", max_size=40))
def test_any_line_is_a_sequence_or_a_mistake_in_words(line):
    try:
        sequence = parse(line)
    except ConfigError:
        return
    assert parse(canonical(sequence)) == sequence


def test_groups_repeat_and_nest():
    assert canonical(parse("(gated-conv swiglu)*2 swiglu")) == (
        "gated-conv swiglu gated-conv swiglu swiglu"
    )
    assert parse("((gated-conv)*2 swiglu * 2)*2") == 2 * (
        *2 * (make("gated-conv"),),
        *2 * (make("swiglu"),),
    )


def test_numbers_are_read_with_the_types_of_the_layer():
    assert parse("gated-conv( kernel = 4 ) swiglu(inner=none)") == (
        make("gated-conv", {"kernel": 4}),
        make("swiglu"),
    )


def test_defaults_hold_where_a_layer_says_nothing_else():
    sequence = parse("gated-conv gated-conv(kernel=2)", {"gated-conv": {"kernel": 5}})
    assert sequence == (make("gated-conv", {"kernel": 5}), make("gated-conv", {"kernel": 2}))


@each_of(
    ("text", "message"),
    [
        ("gated-con swiglu", "no layer 'gated-con'; did you mean 'gated-conv'"),
        ("gated-conv(kernal=3)", "'gated-conv.kernal'; did you mean 'gated-conv.kernel'"),
        ("gated-conv(h4)", "unknown .* 'gated-conv.heads'; did you mean 'gated-conv.kernel'"),
        ("gated-conv(kernel=wide)", "gated-conv.kernel is 'wide'; wanted a whole number"),
        ("gated-conv(3)", "'3' is not a number of a layer; write name=value, or h4"),
        ("gated-conv(kernel=3,kernel=4)", "has kernel twice"),
        ("(gated-conv", "a parenthesis .* is not closed"),
        ("gated-conv)", r"'\)' .* closes nothing"),
        ("()", r"'\(\)' .* holds no layers"),
        ("", "the sequence has no layers"),
        ("*2", r"\*2 .* repeats nothing"),
        ("swiglu*2*2", r"\*2 .* repeats nothing"),
        ("swiglu*0", r"\*0 .* leaves no layer"),
        ("swiglu, swiglu", "',' at character 7"),
        (f"swiglu*{10**12}", f"{10**12} layers; write {MOST_LAYERS} at most"),
    ],
)
def test_what_is_no_sequence_is_refused_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_a_line_is_an_architecture_for_bytes():
    cfg = load_candidate("gated-conv swiglu")
    assert (cfg.hidden_size, cfg.vocab_size) == (128, 320)
    assert canonical(cfg.layers) == "gated-conv swiglu"


def test_an_architecture_of_another_family_is_refused():
    with pytest.raises(ConfigError, match="tiny is a model of the family 'xlstm'"):
        load_candidate("tiny")
