"""Sizes of the layers, refused numbers, initial values and ends of sequences."""

from dataclasses import replace
from typing import get_type_hints

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.winner import write
from mlxhog.models import lm_float64
from mlxhog.models.layers import BUILT_IN, at_width, make, to_dict
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from mlxhog.models.spec import initial_value
from tests.mad.training.small_runs import small_run
from tests.models.sample import batch, perturbed_params
from tests.models.twins import TWINS, float64
from tests.pairs import each_of
from tests.tolerances import LOGITS_F32, assert_close

D = 128


def model(layers, width=32, **sizes):
    layers = parse(layers) if isinstance(layers, str) else layers
    return MADConfig(vocab_size=23, hidden_size=width, layers=layers, **sizes)


def start(text):
    """The initial values of a layer by name."""
    (layer,) = parse(text)
    return {spec.name: initial_value(spec, 7) for spec in layer.param_spec(D)}


@each_of(
    ("text", "message"),
    [
        ("mh-attention(h5)", "heads is 5, and the width is 32; choose one of 1, 2, 4, 8, 16, 32"),
        ("mh-attention(h32)", "each is 1 wide, and rope rotates pairs; .* or rope=false"),
        ("mh-attention(kv_heads=3)", "kv_heads is 3, which does not divide the 16 heads"),
        ("mh-attention(base=1)", "base is 1.0; wavelengths need one above 1"),
        ("mamba3(h5)", "heads is 5, and the inner width is 64"),
        ("mamba3(states=3)", "rope_fraction is 0.5 of 3 states; .* at least 2 states rotate"),
        ("mamba3(rope_fraction=1.5)", "rope_fraction is 1.5 of 16 states; choose up to 1"),
        ("linear-attention(floor=0)", "floor is 0.0; outputs are divided by it"),
        ("delta-net(h3)", "heads is 3, and the width is 32; choose one of 1, 2"),
        ("canon(kernel=0)", "kernel is 0; set it to at least 1"),
        ("mlstm-v1(qkv_block=3)", "inner.*does not divide into blocks|qkv_proj_blocksize 3"),
        ("hyena(groups=7)", "groups is 7, and the projections have 384 channels"),
        ("moe-swiglu(active=9)", "active is 9 of 8 experts; take 1 to 8"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_way_out(text, message):
    with pytest.raises(ConfigError, match=message):
        model(text)


@each_of("layer", BUILT_IN, ids=lambda layer: layer.name)
def test_a_negative_number_of_any_layer_is_refused_by_its_name(layer):
    for name, hint in get_type_hints(layer).items():
        if name in layer().hyperparameters() and hint in (int, int | None):
            with pytest.raises(ConfigError, match=name):
                model((layer(**{name: -1}),))


@each_of("text", ["ssd", "mamba", "gated-delta-net", "gated-delta-product", "kda"])
def test_what_forgets_starts_between_slow_and_fast(text):
    own = start(text)
    dt = np.logaddexp(own["dt_proj.bias" if text == "mamba" else "dt_bias"], 0)
    assert 0.000999 <= dt.min() <= dt.max() <= 0.1001
    speeds = np.exp(own["A_log"])
    if text == "mamba":
        np.testing.assert_allclose(speeds, np.tile([1, 2, 3, 4], (256, 1)), rtol=1e-6)
    else:
        assert 0.999 <= speeds.min() <= speeds.max() <= 16.001


DECAYED = "ssd mamba gated-delta-net kda rwkv7 gla gsa mesa mh-attention path".split()


@each_of("text", DECAYED)
def test_decay_of_weights_spares_gates_norms_and_biases(text):
    (layer,) = parse(text)
    for spec in layer.param_spec(D):
        assert spec.decay == (len(spec.shape) > 1 and spec.name != "A_log"), spec.name


def test_rwkv7_begins_as_its_published_first_layer():
    own, way, layer = start("rwkv7"), np.arange(D) / D, make("rwkv7")
    for name, exponent in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
        np.testing.assert_allclose(own[f"mu_{name}"], 1 - way**exponent, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(own["w0"], -6 + 6 * np.arange(D) / (D - 1) + 0.5, atol=1e-6)
    assert not own["out_proj.weight"].any()
    assert [dict(layer.state(d, 9))["shift"] for d in (64, 256)] == [64, 256]
    for d, ranks in {64: (32, 32), 128: (32, 64), 1024: (64, 160), 2048: (128, 224)}.items():
        assert layer.ranks(d) == ranks


@each_of(
    ("text", "name", "low", "high", "n"),
    [
        ("mlstm", "fgate.bias", 3.0, 6.0, 4),  # forget gates begin open
        ("slstm", "recurrent.bias", 3.0, 6.0, D),
        ("mlstm(signed=true)", "fgate.bias", -3.0, 3.0, None),
        ("slstm(bias_init=powerlaw)", "recurrent.bias", -7.0, 5.0, None),
        ("slstm(recurrent_init=uniform)", "recurrent.weight", -(32**-0.5), 32**-0.5, None),
    ],
)
def test_initial_values_of_xlstm_have_their_ranges(text, name, low, high, n):
    values = start(text)[name]
    values = values if n is None else values[values != 0]
    assert (values.min(), values.max()) == (pytest.approx(low, 0.01), pytest.approx(high, 0.01))
    assert n in (None, len(values))


@each_of(("d", "heads"), [(16, 1), (48, 3), (64, 4), (96, 6), (100, 5), (128, 16), (256, 16)])
def test_heads_of_attention_that_says_none_are_16_wide_below_the_width_of_mad_lab(d, heads):
    for text in ("mh-attention", "mh-sliding-attention", "path"):
        assert at_width(parse(text), d) == parse(f"{text}(h{heads})")
        assert at_width(parse(f"{text}(h2)"), d) == parse(f"{text}(h2)")


def test_a_layer_a_checkpoint_and_a_run_have_every_number(tmp_path):
    assert to_dict(*parse("mlstm")) == {"type": "mlstm", "heads": 4, "conv": 4, "signed": False}
    signed = model("mlstm(signed=true)")
    assert MADConfig.from_dict(signed.to_dict()) == signed
    unnamed = model("mh-attention swiglu", 64)
    assert unnamed.to_dict()["layers"][0]["heads"] == 4
    write(tmp_path / "winner.yaml", unnamed)
    assert "heads: 4" in (tmp_path / "winner.yaml").read_text()
    run = small_run(dim=64)
    layers = (parse(f"mh-attention{heads} swiglu") for heads in ("(h4)", ""))
    assert len({replace(run, layers=one).key() for one in layers}) == 1


@each_of("text", ["delta-net({})", "gated-delta-product({},householders=1)", "kda({})"])
def test_a_memory_of_negative_eigenvalues_counts_modulo_2(text):
    outputs = {}
    for negative in ("true", "false"):
        (layer,) = parse(text.format(f"h1,conv=1,negative={negative}"))
        p = {spec.name: np.ones(spec.shape) for spec in layer.param_spec(4)}
        p["b_proj.weight"] *= 20  # beta at its bound
        if "A_log" in p:
            p["A_log"] -= 100  # no decay
        outputs[negative] = float64(layer, p, np.ones((1, 6, 4)))[0, :, 0]
    counting, held = outputs["true"], outputs["false"]
    assert (np.abs(counting[::2]) > 0.1).all()
    np.testing.assert_allclose(counting[1::2], 0, atol=0.01)  # keys are not quite of length 1
    np.testing.assert_allclose(held, held[0], rtol=1e-4)


@each_of("name", TWINS)
@each_of("text", ["hyena", "mh-hyena(h4)"])
def test_a_long_filter_reaches_as_far_back_as_the_model_is_long(text, name):
    cfg, side = model(text, 16, max_length=6), TWINS[name]
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 1, 11, 2)
    expected, _ = lm_float64.logits(cfg, params, tokens)
    assert_close(side.logits(cfg, params, tokens)[0], expected, LOGITS_F32)
    state = side.zero_state(cfg, 1)
    for t in range(11):
        actual, state = side.logits(cfg, params, tokens[:, t : t + 1], state)
        assert_close(actual[:, 0], expected[:, t], LOGITS_F32)


def test_a_mixture_takes_the_best_experts_alone_and_mad_labs_router_does_not():
    for router, is_alone in (("top-k", True), ("mad", False)):
        (layer,) = model(f"moe-swiglu(router={router})", 16).layers
        rng = np.random.default_rng(0)
        p = {spec.name: rng.standard_normal(spec.shape) for spec in layer.param_spec(16)}
        x = rng.standard_normal((1, 1, 16))
        whole = float64(layer, p, x)
        worst = int((x @ p["router.weight"].T + p["router.bias"]).argmin())
        p["w1.weight"][worst * 16 : worst * 16 + 16] = 0.0
        assert np.array_equal(float64(layer, p, x), whole) == is_alone
