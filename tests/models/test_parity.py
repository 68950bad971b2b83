"""MLX, torch and the float64 reference agree on models and lengths nobody recorded."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxhog.models import lm_numpy
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.ops.reference import mlstm_numpy
from tests.models.sample import batch, cell_inputs, config, perturbed_params
from tests.models.twins import TWINS, Twin
from tests.pairs import in_pairs
from tests.tolerances import (
    CELL_EXTREME_F32,
    GRADIENT_ANY_F32,
    LOGITS_F32,
    LOSS_F32,
    STATE_F32,
    assert_close,
)

pytestmark = pytest.mark.slow

all_twins = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"num_heads": 1, "chunk_size": 5},
    "wide values": {"v_dim_factor": 2.0, "qk_dim_factor": 1.0},
    "bias": {"use_bias": True},
    "no out norm": {"add_out_norm": False},
    "other caps": {"gate_soft_cap": 5.0, "output_logit_soft_cap": 3.0, "norm_eps": 1e-3},
    "tied": {"tie_word_embeddings": True},
    "documents": {"reset_at_document_boundaries": True, "bos_token_id": 3},
    "odd sizes": {"hidden_size": 18, "num_heads": 3, "vocab_size": 7, "chunk_size": 64},
}


@in_pairs(twin=TWINS, changes=CONFIGS, S=[1, 2, 4, 9, 16, 23])
def test_loss_logits_and_every_gradient_equal_the_float64_reference(
    twin: Twin, changes: dict[str, Any], S: int
) -> None:
    cfg = config(**changes)
    params = perturbed_params(cfg, seed=S)
    tokens, labels = batch(cfg, 3, S, seed=S)

    x, starts = lm_numpy.embed(cfg, params, tokens), lm_numpy.starts(cfg, tokens)
    expected_logits, _ = lm_numpy.forward(cfg, params, x, starts=starts)
    expected_loss, expected = lm_numpy.differentiate(cfg, params, tokens, labels)
    logits, _ = twin.logits(cfg, params, tokens)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, labels)

    assert_close(logits, expected_logits, LOGITS_F32)
    assert_close(loss, expected_loss, LOSS_F32)
    for name in param_spec(cfg):
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)


@all_twins
def test_documents_packed_into_one_sequence_compute_what_they_compute_alone(twin: Twin) -> None:
    cfg = config(reset_at_document_boundaries=True, bos_token_id=0)
    params = perturbed_params(cfg, seed=1)
    tokens, _ = batch(cfg, 2, 21, seed=1)
    tokens = np.maximum(tokens, 1)
    tokens[:, [0, 5, 14]] = 0
    packed, _ = twin.logits(cfg, params, tokens)
    alone = [twin.logits(cfg, params, part)[0] for part in np.split(tokens, [5, 14], axis=1)]
    assert_close(packed, np.concatenate(alone, axis=1), LOGITS_F32)


@all_twins
def test_a_model_at_its_initial_values_equals_the_float64_reference(twin: Twin) -> None:
    # The input gate is nearly closed there, so that both eps matter.
    cfg = config()
    params = init_params(cfg, seed=0)
    tokens, labels = batch(cfg, 2, 13, seed=0)
    expected_loss, expected = lm_numpy.differentiate(cfg, params, tokens, labels)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, labels)
    assert_close(loss, expected_loss, LOSS_F32)
    for name in expected:
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)


@all_twins
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 3),
    S=st.integers(1, 40),
    NH=st.integers(1, 3),
    DK=st.integers(1, 9),
    DV=st.integers(1, 9),
    chunk_size=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_the_cell_equals_its_reference_at_any_size(
    twin: Twin, B: int, S: int, NH: int, DK: int, DV: int, chunk_size: int, seed: int
) -> None:
    inputs = cell_inputs(B, S, NH, DK, DV, seed)
    h, state = twin.op("mlstm_cell", *inputs.values(), chunk_size=chunk_size, eps=1e-6)
    exact = [value.astype(np.float64) for value in inputs.values()]
    expected_h, expected_state, _ = mlstm_numpy.recurrent(*exact, eps=1e-6)
    assert_close(h, expected_h, CELL_EXTREME_F32)
    for part, expected in zip(state, expected_state, strict=True):
        assert_close(part, expected, STATE_F32)


@all_twins
def test_a_sequence_in_pieces_equals_the_whole_sequence(twin: Twin) -> None:
    cfg = config()
    params = perturbed_params(cfg, seed=1)
    tokens, _ = batch(cfg, 2, 21, seed=1)
    whole, last = twin.logits(cfg, params, tokens)
    state, pieces = None, []
    for piece in np.split(tokens, [7, 8, 16], axis=1):
        logits, state = twin.logits(cfg, params, piece, state)
        pieces.append(logits)
    assert_close(np.concatenate(pieces, 1), whole, LOGITS_F32)
    assert state is not None
    for parts, expected_parts in zip(state, last, strict=True):
        for part, expected in zip(parts, expected_parts, strict=True):
            assert_close(part, expected, STATE_F32)


@all_twins
def test_no_state_means_the_state_of_zeros(twin: Twin) -> None:
    cfg = config()
    params = perturbed_params(cfg, seed=2)
    tokens, _ = batch(cfg, 2, 6, seed=2)
    without, _ = twin.logits(cfg, params, tokens)
    with_zeros, _ = twin.logits(cfg, params, tokens, twin.zero_state(cfg, 2))
    np.testing.assert_array_equal(without, with_zeros)


@all_twins
def test_the_sum_loss_is_the_mean_loss_times_the_number_of_labels(twin: Twin) -> None:
    cfg = config()
    params = perturbed_params(cfg, seed=3)
    tokens, labels = batch(cfg, 2, 9, seed=3)
    mean, _ = twin.loss_and_grads(cfg, params, tokens, labels)
    total = twin.sum_loss(cfg, params, tokens, labels)
    assert_close(total / (labels != -100).sum(), mean, LOSS_F32)


@all_twins
def test_a_batch_without_labels_has_loss_zero_and_gradients_zero(twin: Twin) -> None:
    cfg = config()
    params = perturbed_params(cfg, seed=4)
    tokens, labels = batch(cfg, 2, 5, seed=4)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, np.full_like(labels, -100))
    assert loss == 0.0
    assert all(not grad.any() for grad in grads.values())
