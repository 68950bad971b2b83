"""The xLSTM Large architectures of the package have the sizes their sources publish."""

import pytest

from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import XLSTMLargeConfig

PUBLISHED = {"160m": 162_303_840, "1.3b": 1_420_839_104, "7b": 6_865_424_896}
FFN_DIM = {"minute": 384, "tiny": 384, "160m": 2048, "400m": 2752, "1.3b": 5504, "7b": 10944}


def large(name):
    cfg = load_architecture(name)
    assert isinstance(cfg, XLSTMLargeConfig)
    return cfg


def by_formula(cfg, ffn_dim):
    """Parameters of a model without biases and with a head of its own."""
    d, NH = cfg.hidden_size, cfg.num_heads
    dqk, dv = d // 2, d
    block = 2 * d + 2 * d * dqk + 2 * d * dv + dv * d + 2 * (d * NH + NH) + dv + 3 * d * ffn_dim
    return cfg.num_hidden_layers * block + d + 2 * cfg.vocab_size * d


@pytest.mark.parametrize("name", FFN_DIM)
def test_a_large_architecture_has_the_parameters_of_the_formula(name):
    cfg = large(name)
    assert families.param_count(cfg) == by_formula(cfg, FFN_DIM[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_architecture_has_the_published_number_of_parameters(name):
    assert families.param_count(large(name)) == PUBLISHED[name]


def test_7b_has_the_shapes_of_the_released_checkpoint():
    d, dqk, dv, NH, U, V = 4096, 2048, 4096, 8, 10944, 50304
    spec = families.param_spec(large("7b"))
    shapes = {name: parameter.shape for name, parameter in spec.items()}
    assert shapes.pop("backbone.embeddings.weight") == (V, d)
    assert shapes.pop("backbone.out_norm.weight") == (d,)
    assert shapes.pop("lm_head.weight") == (V, d)
    for layer in range(32):
        block = f"backbone.blocks.{layer}"
        for norm in ("norm_mlstm", "norm_ffn"):
            assert shapes.pop(f"{block}.{norm}.weight") == (d,)
        for name, out, width in (
            ("q", dqk, d),
            ("k", dqk, d),
            ("v", dv, d),
            ("ogate_preact", dv, d),
            ("out_proj", d, dv),
        ):
            assert shapes.pop(f"{block}.mlstm_layer.{name}.weight") == (out, width)
        for gate in ("igate_preact", "fgate_preact"):
            assert shapes.pop(f"{block}.mlstm_layer.{gate}.weight") == (NH, d)
            assert shapes.pop(f"{block}.mlstm_layer.{gate}.bias") == (NH,)
        assert shapes.pop(f"{block}.mlstm_layer.multihead_norm.weight") == (dv,)
        for name, out, width in (("proj_up_gate", U, d), ("proj_up", U, d), ("proj_down", d, U)):
            assert shapes.pop(f"{block}.ffn.{name}.weight") == (out, width)
    assert not shapes
    cfg = large("7b")
    assert (cfg.qk_head_dim, cfg.v_head_dim) == (256, 512)
