"""The mLSTM and sLSTM layers, and those without memory: twins, causality, states, counts."""

import math
from typing import Any

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models import lm_numpy
from mlxhog.models.mad import MADConfig, param_spec
from mlxhog.models.mad.layer import Layer, make, twin
from mlxhog.models.mad.sequence import parse
from tests.models.sample import batch, perturbed_params
from tests.models.twins import TWINS
from tests.tolerances import GRADIENT_ANY_F32, LOGITS_F32, STATE_F32, assert_close

LAYERS = (
    "mlstm(h2)",
    "mlstm(h4,conv=0)",
    "slstm(h2)",
    "slstm(h4,conv=3)",
    "mlstm-v1(h2)",
    "slstm-v1(h2)",
    "mlp",
    "mlp(inner=24)",
    "geglu",
)


def config(layers: str) -> MADConfig:
    return MADConfig(vocab_size=23, hidden_size=16, layers=parse(layers), max_length=70)


def logits(cfg: MADConfig, params: Any, tokens: Any) -> Any:
    return lm_numpy.forward(cfg, params, lm_numpy.embed(cfg, params, tokens))[0]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("text", LAYERS)
def test_a_twin_computes_what_the_reference_does(text: str, name: str) -> None:
    cfg = config(text)
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 2, 67, 2)
    found, _ = TWINS[name].logits(cfg, params, tokens)
    assert_close(found, logits(cfg, params, tokens), LOGITS_F32)


@pytest.mark.parametrize("text", LAYERS)
def test_torch_and_mlx_agree_on_every_gradient(text: str) -> None:
    cfg = config(text)
    params, (tokens, labels) = perturbed_params(cfg, 1), batch(cfg, 2, 19, 2)
    found = {
        name: side.loss_and_grads(cfg, params, tokens, labels)[1] for name, side in TWINS.items()
    }
    wanted = found.pop("torch-reference")
    for grads in found.values():
        for name in param_spec(cfg):
            assert_close(grads[name], wanted[name], GRADIENT_ANY_F32, label=name)


@pytest.mark.parametrize("text", LAYERS)
def test_a_later_token_changes_no_earlier_output(text: str) -> None:
    cfg = config(text)
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 1, 12, 2)
    other = tokens.copy()
    other[0, 7] += 1
    other %= cfg.vocab_size
    changed = logits(cfg, params, other) != logits(cfg, params, tokens)
    assert not changed[0, :7].any()
    assert changed[0, 7].any()


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("text", LAYERS)
def test_one_token_at_a_time_gives_the_outputs_of_the_whole(text: str, name: str) -> None:
    cfg, side = config(text), TWINS[name]
    params, (tokens, _) = perturbed_params(cfg, 1), batch(cfg, 2, 9, 2)
    wanted, last = side.logits(cfg, params, tokens)
    state: Any = side.zero_state(cfg, 2)
    for t in range(9):
        found, state = side.logits(cfg, params, tokens[:, t : t + 1], state)
        assert_close(found[:, 0], wanted[:, t], LOGITS_F32)
    for part, whole in zip(state[0], last[0], strict=True):
        assert_close(part, whole, STATE_F32)


@pytest.mark.parametrize("framework", ["torch", "mlx"])
@pytest.mark.parametrize("text", LAYERS)
def test_the_state_that_is_counted_is_the_state_that_is_kept(text: str, framework: str) -> None:
    (layer,) = parse(text)
    parts = twin(type(layer), framework).init_state(layer, 64, 1)
    assert sum(math.prod(part.shape) for part in parts) == sum(layer.state(64, 100).values())


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


@pytest.mark.parametrize("text", ["mlstm(h3)", "slstm(h0)", "mlstm-v1(h3)", "slstm-v1(h5)"])
def test_heads_that_do_not_divide_the_width_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="heads is ., and the .*width is .*; choose one of 1, 2"):
        config(text)
