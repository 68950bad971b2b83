"""A line of layers or a YAML file becomes the flat list, which is a model's identity.

Mistakes are answered in words, with their place.
"""

from typing import get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.layers import known, make
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import MAX_LAYERS, canonical, parse
from mlxhog.models.registry import architectures, load_architecture, load_candidate, to_yaml
from tests.pairs import each_of


def read(text):
    return families.read(yaml.safe_load(text), strict=True)


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
    types, names = get_type_hints(layer), [*layer().hyperparameters()]
    chosen = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    specs = options(layer)
    words = {name: st.sampled_from(specs[name].choices) for name in chosen if specs[name].choices}
    return layer(**{name: draw(words.get(name, VALUES[types[name]])) for name in chosen})


@given(st.lists(layers(), min_size=1, max_size=8).map(tuple))
def test_the_canonical_text_of_any_list_reads_back_as_the_list(made):
    assert parse(canonical(made)) == made


CONV, MAP, FOUR = make("gated-conv"), make("swiglu"), make("gated-conv", {"kernel": 4})


@each_of(
    ("line", "expected"),
    [
        ("(gated-conv swiglu)*2 swiglu", (CONV, MAP, CONV, MAP, MAP)),
        ("((gated-conv)*2 swiglu * 2)*2", 2 * (CONV, CONV, MAP, MAP)),
        ("gated-conv( kernel = 4 ) swiglu(inner=none)", (FOUR, MAP)),
    ],
)
def test_groups_repeat_and_nest_and_numbers_have_the_types_of_the_layer(line, expected):
    assert parse(line) == expected


OTHERS = "gated-conv(3)|gated-conv(kernel=3,kernel=4)|()|gated-conv)||*2|swiglu*2*2|swiglu*0"


@each_of(
    ("text", "message"),
    [
        ("gated-con swiglu", "no layer 'gated-con'; did you mean 'gated-conv'"),
        ("gated-conv(kernal=3)", "'gated-conv.kernal'; did you mean 'gated-conv.kernel'"),
        ("gated-conv(kernel=wide)", "gated-conv.kernel is 'wide'; wanted a whole number"),
        ("(gated-conv", "a parenthesis is not closed at character 12"),
        ("swiglu, swiglu", "',' begins no layer at character 7"),
        (f"swiglu*{10**12}", f"{10**12} layers; write {MAX_LAYERS} at most"),
        *((text, ".") for text in OTHERS.split("|")),
    ],
)
def test_what_is_no_sequence_is_refused_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_sizes_of_the_file_are_those_of_the_model():
    cfg = read(
        "{dim: 64, vocab_size: 50, position: sincos, max_length: 40, "
        "backbone: autoencoder, norm_eps: 1e-5, layers: swiglu}"
    )
    assert cfg == MADConfig(
        vocab_size=50, hidden_size=64, layers=(MAP,), max_length=40, norm_eps=1e-5,
        position="sincos", backbone="autoencoder",
    )  # fmt: skip


def test_a_written_model_reads_back_from_yaml_and_from_a_config(tmp_path):
    cfg = read("layers: [{type: gated-conv, kernel: 4}, swiglu, 'gated-conv(kernel=4) swiglu']")
    assert cfg.layers == (FOUR, MAP) * 2
    file = tmp_path / "winner.yaml"
    file.write_text(to_yaml(cfg))
    assert load_architecture(file) == load_candidate(file) == cfg
    assert families.read(cfg.to_dict()) == cfg


@each_of(
    ("text", "message"),
    [
        ("space: {}", "a space of architectures, .*mlxhog mad search --space"),
        ("{dims: 3, layers: swiglu}", "field 'dims'; did you mean 'dim'"),
        ("{model_type: mad, dim: 8}", "the architecture lacks layers; add it"),
        ("layers: 3", "layers is 3; give a list"),
        ("layers: [swiglu, 3]", r"layers\[1\]: 3 is not a layer"),
        ("layers: [swiglu, swigl]", r"layers\[1\]: no layer 'swigl'.*'swiglu'"),
        ("layers: [{type: swiglu, iner: 3}]",
         r"layers\[0\]: unknown .* 'swiglu.iner'; did you mean"),
        ("layers: [swiglu*4000, swiglu*4000]", "8000 layers; write 4096 at most"),
        ("layers: 'gated-conv(kernel=0)'", r"layer 0 \(gated-conv\): kernel is 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_candidates_of_the_package_are_architectures_and_spaces_are_not():
    for name, line in (
        ("mad-7to1", "(mlstm swiglu)*7 slstm swiglu"),
        ("mad-7to1-v1", "mlstm-v1*7 slstm-v1 geglu"),
        ("mad-striped", "(gla swiglu)*3 mh-attention swiglu"),
        ("gated-conv swiglu", "gated-conv swiglu"),
    ):
        assert load_candidate(name).layers == parse(line)
    bytes_ = load_candidate("gated-conv swiglu")  # a line is an architecture for bytes
    assert (bytes_.hidden_size, bytes_.vocab_size) == (128, 320)
    attention = load_candidate("lfm2-tiny").layers[4]
    assert canonical([attention]) == (
        "mh-attention(h16,kv_heads=8,base=1000000.0,qk_norm=true,bias=false)"
    )
    assert not [name for name in architectures() if name.startswith("space")]
    with pytest.raises(ConfigError, match="tiny is a model of the family 'xlstm'"):
        load_candidate("tiny")
