"""MLX, torch and the float64 reference agree on models and lengths nobody recorded."""

from functools import partial

import numpy as np
import pytest

from mlxhog.models import lm, lm_float64
from mlxhog.models.families import param_spec
from tests.models.sample import DROPPING, LARGE, V1, batch, config, perturbed_params, v1_config
from tests.models.twins import TWINS, Twin, all_twins
from tests.pairs import each_of, in_pairs
from tests.tolerances import (
    GRADIENT_ANY_F32,
    LOGITS_F32,
    LOSS_F32,
    STATE_F32,
    assert_close,
)


def assert_reference(twin, cfg, params, tokens, labels):
    """Loss and every gradient are those of the float64 reference."""
    expected_loss, expected = lm_float64.differentiate(cfg, params, tokens, labels)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, labels)
    assert_close(loss, expected_loss, LOSS_F32)
    for name in param_spec(cfg):
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)


@pytest.mark.slow
@in_pairs(twin=TWINS, model=LARGE | V1, S=[1, 2, 4, 9, 16, 23])
def test_loss_logits_and_every_gradient_equal_the_float64_reference(twin, model, S):
    cfg = model()
    params = perturbed_params(cfg, seed=S)
    tokens, labels = batch(cfg, 3, S, seed=S)
    expected_logits, _ = lm_float64.logits(cfg, params, tokens)
    logits, _ = twin.logits(cfg, params, tokens)
    assert_close(logits, expected_logits, LOGITS_F32)
    assert_reference(twin, cfg, params, tokens, labels)


@pytest.mark.slow
@each_of("twin", [Twin("torch", "metal-emulated"), Twin("mlx", "metal-emulated")])
@each_of("name", ["v1, mixed", "v1, documents"])
def test_metal_kernels_give_every_gradient_of_the_float64_reference(twin, name):
    cfg = V1[name]()
    params = perturbed_params(cfg, seed=6)
    assert_reference(twin, cfg, params, *batch(cfg, 2, 9, seed=6))


@all_twins
def test_a_batch_without_labels_has_loss_zero_and_gradients_zero(twin):
    cfg = config()
    params = perturbed_params(cfg, seed=4)
    tokens, labels = batch(cfg, 2, 5, seed=4)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, np.full_like(labels, -100))
    assert loss == 0.0
    assert all(not grad.any() for grad in grads.values())


@pytest.mark.slow
@all_twins
def test_dropped_units_are_those_of_the_reference_and_evaluation_drops_none(twin):
    cfg = v1_config(**DROPPING)
    params = perturbed_params(cfg, seed=0)
    tokens, labels = batch(cfg, 2, 7, seed=0)
    masks = lm.dropout_masks(cfg, tokens.shape, seed=5)
    assert masks is not None

    expected_loss, expected = lm_float64.differentiate(cfg, params, tokens, labels, masks=masks)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, labels, masks)
    assert_close(loss, expected_loss, LOSS_F32)
    for name in param_spec(cfg):
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)

    whole, _ = lm_float64.differentiate(cfg, params, tokens, labels)
    assert abs(whole - expected_loss) > 0.01
    assert_close(twin.loss_and_grads(cfg, params, tokens, labels)[0], whole, LOSS_F32)


def test_dropout_is_where_the_package_has_it():
    def rates(cfg):
        masks = lm.dropout_masks(cfg, (64, 64), seed=0) or {}
        return {site: round(float((mask == 0).mean()), 1) for site, mask in masks.items()}

    block = "xlstm_block_stack.blocks"
    mixers = [f"{block}.{n}.xlstm" for n in range(3)]
    expected = dict.fromkeys([*mixers, "token_embedding.weight"], 0.2) | {f"{block}.1.ffn": 0.4}
    assert rates(v1_config(**DROPPING)) == expected
    assert rates(v1_config(dropout=0.1)) == dict.fromkeys(mixers, 0.1)
    assert rates(v1_config()) == {}


@pytest.mark.slow
@in_pairs(twin=TWINS, model={"plain": config} | V1, parts=[[1] * 11, [3, 1, 5, 2]])
def test_a_sequence_in_parts_gives_the_logits_and_the_state_of_the_whole(twin, model, parts):
    cfg = model()
    params = perturbed_params(cfg, seed=1)
    tokens, _ = batch(cfg, 2, sum(parts), seed=1)
    whole, last = twin.logits(cfg, params, tokens)

    state, result = twin.zero_state(cfg, 2), []
    for part in np.split(tokens, np.cumsum(parts)[:-1], axis=1):
        logits, state = twin.logits(cfg, params, np.ascontiguousarray(part), state)
        result.append(logits)
    assert_close(np.concatenate(result, 1), whole, LOGITS_F32)
    for parts_of_block, expected_parts in zip(state, last, strict=True):
        for part, expected in zip(parts_of_block, expected_parts, strict=True):
            assert_close(part, expected, STATE_F32)


@all_twins
@each_of("make", [config, partial(v1_config, slstm_at=[0, 2])])
def test_documents_in_one_sequence_compute_what_they_compute_alone(twin, make):
    cfg = make(reset_at_document_boundaries=True, bos_token_id=0)
    params = perturbed_params(cfg, seed=2)
    tokens = np.maximum(batch(cfg, 2, 21, seed=1)[0], 1)
    tokens[:, [0, 5, 6, 14]] = 0
    packed, _ = twin.logits(cfg, params, tokens)
    alone = [twin.logits(cfg, params, part)[0] for part in np.split(tokens, [5, 6, 14], axis=1)]
    assert_close(packed, np.concatenate(alone, axis=1), LOGITS_F32)
    run_on, _ = twin.logits(make(), params, tokens)
    assert np.abs(run_on - packed).max() > 0.01
