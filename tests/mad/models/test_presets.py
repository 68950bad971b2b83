"""Presets of blocks expand to layers; ambiguous ones need another field."""

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.mad import MADConfig
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.models.registry import architectures, load_architecture, load_candidate
from tests.pairs import each_of


def read(**blocks):
    cfg = families.read({"version": 1, "model": {"blocks": blocks}}, strict=True)
    assert isinstance(cfg, MADConfig)
    return cfg


def test_seven_to_one_in_the_large_style_is_a_mixer_and_a_swiglu_per_block():
    cfg = read(preset="xlstm", ratio="7:1", count=8, style="large")
    assert cfg.layers == parse("(mlstm swiglu)*7 slstm swiglu")


def test_seven_to_one_in_the_v1_style_has_feed_forward_layers_at_slstm_alone():
    cfg = read(preset="xlstm", ratio="7:1", count=16, style="v1")
    assert cfg.layers == parse("(mlstm-v1*7 slstm-v1 geglu)*2")


def test_places_of_slstm_can_be_named():
    cfg = read(preset="xlstm", slstm_at=[1], count=3, style="large")
    assert cfg.layers == parse("mlstm swiglu slstm swiglu mlstm swiglu")


def test_stripes_repeat_to_the_depth_that_is_asked_for():
    cfg = read(
        preset="striping",
        pattern="1M:2S",
        count=5,
        channel="mlp",
        letters={"M": "mlstm", "S": "slstm"},
    )
    assert cfg.layers == parse("mlstm mlp (slstm mlp)*2 mlstm mlp slstm mlp")


def test_layer_types_of_lfm2_are_its_operators_with_its_numbers():
    cfg = read(preset="lfm2", layer_types=["conv", "full_attention"])
    attention = "mh-attention(h16,kv_heads=8,base=1000000.0,qk_norm=true,bias=false)"
    assert canonical(cfg.layers) == f"gated-conv swiglu {attention} swiglu"


def test_defaults_reach_the_layers_of_a_preset():
    model = {
        "defaults": {"mlstm": {"heads": 2}},
        "blocks": {"preset": "xlstm", "ratio": "1:0", "count": 1, "style": "large"},
    }
    cfg = families.read({"model": model}, strict=True)
    assert isinstance(cfg, MADConfig)
    assert canonical(cfg.layers) == "mlstm(h2) swiglu"


@each_of(
    ("blocks", "message"),
    [
        ({"style": None}, "style is"),
        (
            {"preset": "xlstm", "slstm_at": [3], "count": 3, "style": "large"},
            "slstm_at names block 3",
        ),
        ({"preset": "xlst"}, "preset is 'xlst'; did you mean 'xlstm'"),
        ({}, "preset is None; the presets are xlstm, lfm2, striping"),
        ({"preset": "xlstm", "ratios": "7:1"}, "preset xlstm has no 'ratios'; did you mean 'ratio"),
        ({"style": "larg"}, "style is 'larg'"),
        ({"ratio": "7"}, "ratio is '7'; write it as \"7:1\""),
        ({"ratio": "0:0"}, "ratio is '0:0'"),
        ({"ratio": 421}, "ratio is 421"),
        ({"ratio": f"{'9' * 5000}:1"}, "ratio is '9999"),
        ({"count": 9}, "9 blocks are not whole groups of 7:1; set count to 8"),
        ({"count": 0}, "count is 0; give at least 1 block"),
        ({"count": 10**9}, "layers; write 4096 at most"),
        ({"slstm_at": [1]}, "either ratio"),
        ({"ratio": None, "slstm_at": None}, "either ratio"),
        ({"preset": "lfm2", "layer_types": []}, r"layer_types is \[\]"),
        (
            {"preset": "lfm2", "layer_types": ["conf"]},
            "layer_types holds 'conf'; did you mean 'conv'",
        ),
        ({"preset": "striping", "pattern": "A-H", "count": 2}, "pattern is 'A-H'; write stripes"),
        ({"preset": "striping", "pattern": "1Q", "count": 2}, "the unknown letter Q"),
        ({"preset": "striping", "pattern": "0H", "count": 2}, "pattern 0H has no block"),
        (
            {"preset": "striping", "pattern": "1M", "letters": {"M": "mlst"}, "count": 2},
            "no layer 'mlst'; did you mean 'mlstm'",
        ),
    ],
)
def test_a_mistake_in_a_preset_is_told_with_its_way_out(blocks, message):
    xlstm = {"preset": "xlstm", "ratio": "7:1", "count": 8, "style": "large"}
    settings = blocks if "preset" in blocks or not blocks else xlstm | blocks
    with pytest.raises(ConfigError, match=f"model.blocks: .*{message}"):
        read(**settings)


def test_candidates_of_the_package_are_architectures_and_spaces_are_not():
    assert canonical(load_candidate("mad-7to1").layers) == canonical(
        parse("(mlstm swiglu)*7 slstm swiglu")
    )
    for name in ("mad-7to1-v1", "mad-attention", "mad-striped", "lfm2-tiny"):
        assert load_architecture(name).model_type == "mad"
    assert not [name for name in architectures() if name.startswith("space")]
