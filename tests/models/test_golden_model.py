"""Both twins of each family reproduce what transformers and the xlstm package computed."""

import numpy as np
import pytest

from mlxhog.models import lm_float64
from mlxhog.models.families import param_count, param_spec
from mlxhog.models.spec import initial_value
from tests.models.golden import MODELS, TRAINED, V1_MODELS, model_case
from tests.models.twins import TWINS, all_twins
from tests.pairs import each_of
from tests.tolerances import (
    FLOAT64,
    GRADIENT_F32,
    INITIAL_F32,
    LOGITS_F32,
    LOSS_F32,
    STATE_F32,
    assert_close,
)


@pytest.mark.slow
@all_twins
@each_of("name", [*MODELS, *V1_MODELS])
def test_logits_equal_the_recorded_ones(twin, name):
    case = model_case(name)
    logits, _ = twin.logits(case.cfg, case.params, case.tokens)
    assert_close(logits, case.tensors["logits"], LOGITS_F32)
    assert_close(logits, case.tensors["logits_f64"], LOGITS_F32)


@pytest.mark.slow
@all_twins
@each_of("name", [*(name for name in MODELS if name.startswith("hf_")), *V1_MODELS])
def test_the_residual_stream_equals_the_recorded_one_after_every_block(twin, name):
    case = model_case(name)
    hidden = twin.hidden(case.cfg, case.params, case.tokens)
    for layer in range(case.cfg.num_hidden_layers + 1):
        assert_close(hidden[layer], case.tensors[f"hidden.{layer}"], LOGITS_F32, label=f"{layer}")
    if name not in V1_MODELS:
        assert_close(hidden[-1], case.tensors["hidden.out_norm"], LOGITS_F32, label="out_norm")


@pytest.mark.slow
@all_twins
@each_of("name", [*TRAINED, *V1_MODELS])
def test_loss_and_every_gradient_equal_the_recorded_ones(twin, name):
    case = model_case(name)
    loss, grads = twin.loss_and_grads(case.cfg, case.params, case.tokens, case.labels)
    assert_close(loss, case.tensors["loss"][0], LOSS_F32)
    assert set(grads) == set(case.grads) == set(case.params)
    for parameter, recorded in case.grads.items():
        assert_close(grads[parameter], recorded, GRADIENT_F32, label=parameter)


@all_twins
@each_of("name", ["hf_d_generate", "large_a", "large_b_oddlen"])
def test_the_state_after_a_sequence_equals_the_recorded_one(twin, name):
    case = model_case(name)
    _, state = twin.logits(case.cfg, case.params, case.tokens)
    for layer, parts in enumerate(state):
        for part, recorded, letter in zip(parts, case.state(layer), "Cnm", strict=True):
            assert_close(part, recorded, STATE_F32, label=f"{letter} of block {layer}")


@pytest.mark.slow
@all_twins
@each_of("name", ["large_a", "large_b_oddlen", *V1_MODELS])
def test_one_token_at_a_time_gives_the_recorded_logits_and_state(twin, name):
    case = model_case(name)
    state = twin.zero_state(case.cfg, len(case.tokens))
    for t in range(case.tokens.shape[1]):
        logits, state = twin.logits(case.cfg, case.params, case.tokens[:, t : t + 1], state)
        recorded = case.tensors["stepwise_logits"][:, t : t + 1]
        assert_close(logits, recorded, LOGITS_F32, label=f"position {t}")
    for layer, parts in enumerate(state if name not in V1_MODELS else ()):
        for part, recorded in zip(parts, case.state(layer, "stepwise_state"), strict=True):
            assert_close(part, recorded, STATE_F32, label=f"block {layer}")


@each_of("name", V1_MODELS)
def test_the_reference_equals_the_recorded_float64_runs(name):
    case = model_case(name)
    # The package's parallel form takes its stabiliser from the sequence alone, as a recurrence
    # does whose memory has never been written. Otherwise eps enters at another scale: 3e-8 here.
    state = TWINS["torch-reference"].zero_state(case.cfg, len(case.tokens))
    for layer, (*others, m) in enumerate(state):
        if f"xlstm_block_stack.blocks.{layer}.xlstm.q_proj.weight" in case.params:
            state[layer] = (*others, np.full_like(m, -1e30))
    x = lm_float64.embed(case.cfg, case.params, case.tokens)
    logits, _ = lm_float64.forward(case.cfg, case.params, x, state)
    assert_close(logits, case.tensors["logits_f64"], FLOAT64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, np.maximum(case.labels, 0)[..., None], -1
    ).squeeze(-1)
    assert_close(nats[case.labels >= 0].mean(), case.tensors["loss_f64"][0], FLOAT64)


@each_of("name", V1_MODELS)
def test_the_gradients_of_the_reference_equal_the_recorded_ones(name):
    case = model_case(name)
    loss, grads = lm_float64.differentiate(case.cfg, case.params, case.tokens, case.labels)
    assert_close(loss, case.tensors["loss_f64"][0], LOSS_F32)
    assert set(grads) == set(case.grads)
    for parameter, recorded in case.grads.items():
        assert_close(grads[parameter], recorded, GRADIENT_F32, label=parameter)


@each_of("name", V1_MODELS)
def test_names_and_shapes_are_those_of_the_package_and_so_are_fresh_biases(name):
    case = model_case(name)
    spec = param_spec(case.cfg)
    assert {n: p.shape for n, p in spec.items()} == {n: v.shape for n, v in case.params.items()}
    assert param_count(case.cfg) == sum(value.size for value in case.params.values())
    fresh = {n.removeprefix("init."): v for n, v in case.tensors.items() if n.startswith("init.")}
    assert len(fresh) == case.cfg.num_hidden_layers
    for parameter, recorded in fresh.items():
        ours = initial_value(spec[parameter], seed=0)
        assert_close(ours, recorded, INITIAL_F32, label=parameter)
        assert np.ptp(recorded) > 1
