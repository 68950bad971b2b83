"""Both twins reproduce what transformers and the xlstm package computed."""

import numpy as np
import pytest

from tests.models.golden import MODELS, TRAINED, model_case
from tests.models.twins import TWINS, Twin
from tests.tolerances import GRADIENT_F32, LOGITS_F32, LOSS_F32, STATE_F32, assert_close

pytestmark = pytest.mark.slow

all_twins = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)


@all_twins
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_recorded_ones(twin: Twin, name: str) -> None:
    case = model_case(name)
    logits, _ = twin.logits(case.cfg, case.params, case.tokens)
    assert_close(logits, case.tensors["logits"], LOGITS_F32)
    assert_close(logits, case.tensors["logits_f64"], LOGITS_F32)


@all_twins
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("hf_")])
def test_the_residual_stream_equals_the_recorded_one_after_every_block(
    twin: Twin, name: str
) -> None:
    case = model_case(name)
    *blocks, last = twin.hidden(case.cfg, case.params, case.tokens)
    for layer, x in enumerate(blocks):
        assert_close(x, case.tensors[f"hidden.{layer}"], LOGITS_F32, label=f"block {layer}")
    assert_close(last, case.tensors["hidden.out_norm"], LOGITS_F32, label="out_norm")


@all_twins
@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_every_gradient_equal_the_recorded_ones(twin: Twin, name: str) -> None:
    case = model_case(name)
    loss, grads = twin.loss_and_grads(case.cfg, case.params, case.tokens, case.labels)
    assert_close(loss, case.tensors["loss"][0], LOSS_F32)
    assert set(grads) == set(case.grads) == set(case.params)
    for parameter, recorded in case.grads.items():
        assert_close(grads[parameter], recorded, GRADIENT_F32, label=parameter)


@all_twins
@pytest.mark.parametrize("name", ["hf_d_generate", "large_a", "large_b_oddlen"])
def test_the_state_after_a_sequence_equals_the_recorded_one(twin: Twin, name: str) -> None:
    case = model_case(name)
    _, state = twin.logits(case.cfg, case.params, case.tokens)
    for layer, parts in enumerate(state):
        for part, recorded, letter in zip(parts, case.state(layer), "Cnm", strict=True):
            assert_close(part, recorded, STATE_F32, label=f"{letter} of block {layer}")


@all_twins
@pytest.mark.parametrize("name", ["large_a", "large_b_oddlen"])
def test_one_token_at_a_time_gives_the_recorded_logits_and_state(twin: Twin, name: str) -> None:
    case = model_case(name)
    state = twin.zero_state(case.cfg, len(case.tokens))
    for t in range(case.tokens.shape[1]):
        logits, state = twin.logits(case.cfg, case.params, case.tokens[:, t : t + 1], state)
        recorded = case.tensors["stepwise_logits"][:, t : t + 1]
        assert_close(logits, recorded, LOGITS_F32, label=f"position {t}")
    for layer, parts in enumerate(state):
        for part, recorded in zip(parts, case.state(layer, "stepwise_state"), strict=True):
            assert_close(part, recorded, STATE_F32, label=f"block {layer}")


@all_twins
@pytest.mark.parametrize("name", ["hf_d_generate", "large_a"])
def test_greedy_generation_gives_the_recorded_tokens(twin: Twin, name: str) -> None:
    case = model_case(name)
    prompt, ids = case.tensors["greedy_prompt"], case.tensors["greedy_ids"]
    if name.startswith("hf_"):  # transformers repeats the prompt, xlstm does not
        ids = ids[:, prompt.shape[1] :]
    token, state = prompt.astype(np.int32), None
    for position in range(ids.shape[1]):
        logits, state = twin.logits(case.cfg, case.params, token, state)
        token = logits[:, -1:].argmax(-1).astype(np.int32)
        np.testing.assert_array_equal(token[:, 0], ids[:, position])
