"""A YAML file of a candidate becomes the flat list; errors name the place of a mistake."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.models.registry import architectures, load_architecture, load_candidate, to_yaml
from tests.pairs import each_of


def read(text):
    cfg = families.read(yaml.safe_load(text), strict=True)
    assert isinstance(cfg, MADConfig)
    return cfg


def flat(layers):
    return canonical(read(f"version: 1\nmodel: {{{layers}}}").layers)


def test_items_lines_and_repetitions_mean_the_same_list():
    expected = "gated-conv(kernel=4) swiglu gated-conv(kernel=4) swiglu"
    for layers in (
        "layers: [{repeat: 2, layers: [{type: gated-conv, kernel: 4}, swiglu]}]",
        "layers: '(gated-conv(kernel=4) swiglu)*2'",
        "defaults: {gated-conv: {kernel: 4}}, layers: [gated-conv, swiglu, gated-conv, swiglu]",
        "defaults: {gated-conv: {kernel: 4}}, layers: ['(gated-conv swiglu)*2']",
    ):
        assert flat(layers) == expected


def test_a_number_of_the_item_wins_over_the_defaults():
    result = flat("defaults: {gated-conv: {kernel: 4}}, layers: [{type: gated-conv, kernel: 2}]")
    assert result == "gated-conv(kernel=2)"


def test_sizes_of_the_file_are_those_of_the_model():
    cfg = read(
        "version: 1\nmodel: {dim: 64, vocab_size: 50, position: sincos, max_length: 40, "
        "backbone: autoencoder, norm: rmsnorm, norm_eps: 1e-5, layers: swiglu}"
    )
    assert cfg == MADConfig(
        vocab_size=50,
        hidden_size=64,
        layers=parse("swiglu"),
        max_length=40,
        norm_eps=1e-5,
        position="sincos",
        backbone="autoencoder",
    )


def test_a_written_model_reads_back_from_yaml_and_from_a_config(tmp_path):
    cfg = read("model: {dim: 64, layers: '(gated-conv swiglu(inner=48))*2'}")
    file = tmp_path / "winner.yaml"
    file.write_text(to_yaml(cfg))
    assert load_architecture(file) == cfg
    assert load_candidate(file) == cfg
    assert families.read(cfg.to_dict()) == cfg


@each_of(
    ("text", "message"),
    [
        ("modell: {}\nmodel: {layers: swiglu}", "unknown field 'modell' beside .*'model'"),
        ("version: 1\nmodle: {layers: swiglu}", "unknown field 'modle' .*did you mean 'model'"),
        ("version: 1", "model is None"),
        ("version: 1\nspace: {}", "a space of architectures, .*mlxhog mad search --space"),
        ("version: 2\nmodel: {layers: swiglu}", "version is 2, and this package reads version 1"),
        ("model: {dims: 3, layers: swiglu}", "field 'model.dims'; did you mean 'model.dim'"),
        ("model: {dim: wide, layers: swiglu}", "model.dim is 'wide'"),
        ("model: {norm: layernorm, layers: swiglu}", "model.norm is 'layernorm'"),
        ("model: {dim: 8}", "the architecture lacks layers; add it"),
        ("model: {layers: swiglu, blocks: {}}", "field 'model.blocks'"),
        ("model: {layers: 3}", "model.layers is 3"),
        ("model: {layers: [swiglu, 3]}", r"model.layers\[1\]: 3 is not a layer"),
        ("model: {layers: [{typ: swiglu}]}", r"model.layers\[0\]: .* is not a layer"),
        ("model: {layers: [swiglu, swigl]}", r"model.layers\[1\]: no layer 'swigl'.*'swiglu'"),
        (
            "model: {layers: [{repeat: 2, layers: [{type: swiglu, iner: 3}]}]}",
            r"model.layers\[0\].layers\[0\]: unknown .* 'swiglu.iner'; did you mean",
        ),
        ("model: {layers: [{repeat: 0, layers: [swiglu]}]}", r"\[0\].repeat is 0"),
        ("model: {layers: [{repeat: 2, layer: [swiglu]}]}", "no 'layer'; did you mean 'layers'"),
        ("model: {layers: [{repeat: 9999, layers: [swiglu]}]}", "9999 layers; write 4096 at most"),
        (
            "model: {defaults: {swiglu: {iner: 3}}, layers: swiglu}",
            "model.layers: unknown .*iner",
        ),
        ("model: {defaults: 3, layers: swiglu}", "model.defaults is 3"),
        ("model: {layers: 'gated-conv(kernel=0)'}", r"layer 0 \(gated-conv\): kernel is 0"),
    ],
)
def test_a_mistake_is_told_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


WORDS = st.sampled_from("mlstm swiglu type repeat layers heads (mlstm)*2 bogus".split())
LEAVES = WORDS | st.integers(-3, 40) | st.none() | st.booleans() | st.floats()
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
MODELS = st.fixed_dictionaries(
    {},
    optional={"layers": TREES, "defaults": TREES}
    | dict.fromkeys("dim vocab_size norm norm_eps position backbone max_length".split(), LEAVES),
)


@given(MODELS | TREES)
def test_whatever_a_file_holds_is_a_model_or_a_mistake_in_words(model):
    try:
        cfg = families.read({"version": 1, "model": model}, strict=True)
    except ConfigError:
        return
    assert families.read(yaml.safe_load(to_yaml(cfg)), strict=True) == cfg


@given(st.lists(TREES, max_size=4))
def test_whatever_layers_a_config_holds_are_read_or_refused_in_words(layers):
    try:
        families.read({"model_type": "mad", "vocab_size": 9, "hidden_size": 8, "layers": layers})
    except ConfigError:
        return
    assert layers


def test_candidates_of_the_package_are_architectures_and_spaces_are_not():
    for name, layers in (
        ("mad-7to1", "(mlstm swiglu)*7 slstm swiglu"),
        ("mad-7to1-v1", "mlstm-v1*7 slstm-v1 geglu"),
        ("mad-striped", "(gla swiglu)*3 mh-attention swiglu"),
    ):
        assert load_candidate(name).layers == parse(layers)
    attention = load_candidate("lfm2-tiny").layers[4]
    assert canonical([attention]) == (
        "mh-attention(h16,kv_heads=8,base=1000000.0,qk_norm=true,bias=false)"
    )
    assert not [name for name in architectures() if name.startswith("space")]
