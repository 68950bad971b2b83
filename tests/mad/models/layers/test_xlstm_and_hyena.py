"""Sizes of the xLSTM, Hyena and feed-forward layers, what they refuse, and where they end."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.models import lm_numpy
from mlxhog.models.mad import MADConfig
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import make
from mlxhog.models.mad.sequence import parse
from tests.models.sample import batch, perturbed_params
from tests.models.twins import TWINS
from tests.tolerances import LOGITS_F32, assert_close


def config(layers: str) -> MADConfig:
    return MADConfig(vocab_size=23, hidden_size=16, layers=parse(layers), max_length=70)


def logits(cfg: MADConfig, params: Any, tokens: Any) -> Any:
    return lm_numpy.forward(cfg, params, lm_numpy.embed(cfg, params, tokens))[0]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("text", ["hyena", "mh-hyena(h4)"])
def test_a_long_filter_reaches_as_far_back_as_the_model_is_long(text: str, name: str) -> None:
    cfg, side = replace(config(text), max_length=6), TWINS[name]
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 1, 11, 2)
    wanted = logits(cfg, params, tokens)
    assert_close(side.logits(cfg, params, tokens)[0], wanted, LOGITS_F32)
    state: Any = side.zero_state(cfg, 1)
    for t in range(11):
        found, state = side.logits(cfg, params, tokens[:, t : t + 1], state)
        assert_close(found[:, 0], wanted[:, t], LOGITS_F32)


def counted(layer: Layer, d: int = 128) -> tuple[int, dict[str, int]]:
    return sum(spec.size for spec in layer.param_spec(d)), dict(layer.state(d, 1000))


def test_the_states_at_width_128_are_those_of_the_table() -> None:
    assert make("mlstm").state(128, 1000) == {"cell": 4228, "conv": 384}
    assert make("mlstm", {"heads": 1, "conv": 0}).state(128, 1000) == {"cell": 16513}
    assert make("slstm").state(128, 1000) == {"cell": 512}
    assert make("mlp").state(128, 1000) == {}


def test_the_parameters_at_width_128_are_counted_by_hand() -> None:
    d = 128
    assert counted(make("mlstm"))[0] == 5 * d * d + 2 * (4 * d + 4) + 5 * d + d
    assert counted(make("slstm"))[0] == 5 * d * d + 4 * d * 32 + 4 * d + d
    assert counted(make("mlp"))[0] == 8 * d * d + 5 * d
    assert counted(make("geglu"))[0] == 3 * d * 192
    assert counted(make("moe-swiglu"))[0] == 3 * d * 128 + 8 * d + 8


@pytest.mark.parametrize("text", ["mlstm(h3)", "slstm(h0)", "mlstm-v1(h3)", "slstm-v1(h5)"])
def test_heads_that_do_not_divide_the_width_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="heads is ., and the .*width is .*; choose one of 1, 2"):
        config(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlstm(conv=-1)", "conv is -1; give a number of taps, or 0 for none"),
        ("mlstm-v1(conv=0)", "conv is 0; a convolution has at least 1 tap"),
        ("mlstm-v1(qkv_block=3)", "inner.*does not divide into blocks|qkv_proj_blocksize 3"),
        ("mlp(inner=0)", "inner is 0; set it to at least 1"),
        ("hyena(expand=0)", "expand is 0"),
        ("hyena(groups=7)", "groups is 7, and the projections have 192 channels"),
        ("mh-hyena(kernel=0)", "kernel is 0"),
        ("mh-hyena(filter_width=0)", "filter_width is 0"),
        ("moe-swiglu(active=9)", "active is 9 of 8 experts; take 1 to 8"),
        ("moe-swiglu(router=hash)", "router is 'hash'; choose one of top-k, mad"),
    ],
)
def test_numbers_that_cannot_be_built_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(text)


def test_a_mixture_takes_the_best_experts_alone_and_mad_labs_router_does_not() -> None:
    shares = {}
    for router in ("top-k", "mad"):
        cfg = config(f"moe-swiglu(router={router})")
        (layer,) = cfg.layers
        rng = np.random.default_rng(0)
        p = {spec.name: rng.standard_normal(spec.shape) for spec in layer.param_spec(16)}
        x = rng.standard_normal((1, 1, 16))
        whole = layer.reference(cfg, p, x)
        worst = int((x @ p["router.weight"].T + p["router.bias"]).argmin())
        units = slice(worst * 16, worst * 16 + 16)
        p["w1.weight"][units] = 0.0
        shares[router] = np.abs(layer.reference(cfg, p, x) - whole).max()
    assert shares["top-k"] == 0.0
    assert shares["mad"] > 0.0
