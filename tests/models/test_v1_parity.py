"""MLX, torch and the float64 reference agree on models of the original stack nobody recorded."""

from typing import Any

import numpy as np
import pytest

from mlxhog.models import lm, lm_numpy
from mlxhog.models.families import dropout_sites, param_spec
from tests.models.sample import batch, perturbed_params, v1_config
from tests.models.twins import TWINS, Twin
from tests.pairs import in_pairs
from tests.tolerances import (
    FINITE_DIFFERENCE,
    GRADIENT_ANY_F32,
    LOGITS_F32,
    LOSS_F32,
    assert_close,
)

pytestmark = pytest.mark.slow

all_twins = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)

NARROW = {"round_proj_up_to_multiple_of": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "mLSTM alone, tied, with biases": {
        "slstm_at": [],
        "num_blocks": 2,
        "bias": True,
        "tie_weights": True,
        "mlstm_block": {"mlstm": {"num_heads": 1, "conv1d_kernel_size": 3, **NARROW}},
    },
    "blocks of 8 in q, k and v": {
        "slstm_at": [0],
        "num_blocks": 2,
        "mlstm_block": {"mlstm": {"qkv_proj_blocksize": 8, "proj_factor": 1.4, **NARROW}},
    },
    "sLSTM alone without convolution": {
        "slstm_at": "all",
        "num_blocks": 2,
        "add_post_blocks_norm": False,
        "slstm_block": {
            "slstm": {
                "num_heads": 4,
                "conv1d_kernel_size": 0,
                "recurrent_weight_init": "standard",
                "bias_init": "standard",
            },
            "feedforward": {"act_fn": "relu^2", "bias": True, **NARROW},
        },
    },
    "sLSTM without feed-forward layer": {
        "slstm_block": {
            "slstm": {"num_heads": 1, "conv1d_kernel_size": 2, "group_norm_weight": False},
            "feedforward": None,
        }
    },
    "documents": {"reset_at_document_boundaries": True, "bos_token_id": 3},
}
DROPPING = {
    "dropout": 0.2,
    "add_embedding_dropout": True,
    "slstm_block": {"slstm": {"num_heads": 2}, "feedforward": {"dropout": 0.4, **NARROW}},
}
configs = pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)


@in_pairs(twin=TWINS, changes=CONFIGS, S=[1, 2, 9, 16])
def test_loss_logits_and_every_gradient_equal_the_float64_reference(
    twin: Twin, changes: dict[str, Any], S: int
) -> None:
    cfg = v1_config(**changes)
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


@pytest.mark.parametrize("twin", [Twin("torch", "metal-emulated"), Twin("mlx", "metal-emulated")])
@pytest.mark.parametrize("changes", [{}, CONFIGS["documents"]], ids=["mixed", "documents"])
def test_metal_kernels_give_every_gradient_of_the_float64_reference(
    twin: Twin, changes: dict[str, Any]
) -> None:
    cfg = v1_config(**changes)
    params = perturbed_params(cfg, seed=6)
    tokens, labels = batch(cfg, 2, 9, seed=6)
    expected_loss, expected = lm_numpy.differentiate(cfg, params, tokens, labels)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, labels)
    assert_close(loss, expected_loss, LOSS_F32)
    for name in param_spec(cfg):
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)


@all_twins
def test_dropped_units_are_those_of_the_reference_and_evaluation_drops_none(twin: Twin) -> None:
    cfg = v1_config(**DROPPING)
    params = perturbed_params(cfg, seed=0)
    tokens, labels = batch(cfg, 2, 7, seed=0)
    masks = lm.dropout_masks(cfg, tokens.shape, seed=5)
    assert masks is not None

    expected_loss, expected = lm_numpy.differentiate(cfg, params, tokens, labels, masks=masks)
    loss, grads = twin.loss_and_grads(cfg, params, tokens, labels, masks)
    assert_close(loss, expected_loss, LOSS_F32)
    for name in param_spec(cfg):
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)

    whole, _ = lm_numpy.differentiate(cfg, params, tokens, labels)
    assert abs(whole - expected_loss) > 0.01
    scored = (labels != -100).sum()
    assert_close(twin.sum_loss(cfg, params, tokens, labels) / scored, whole, LOSS_F32)


def test_dropout_is_where_the_package_has_it() -> None:
    block = "xlstm_block_stack.blocks"
    assert dropout_sites(v1_config(**DROPPING)) == {
        "token_embedding.weight": (16, 0.2),
        f"{block}.0.xlstm": (16, 0.2),
        f"{block}.1.xlstm": (16, 0.2),
        f"{block}.1.ffn": (16, 0.4),
        f"{block}.2.xlstm": (16, 0.2),
    }
    assert set(dropout_sites(v1_config(dropout=0.1))) == {f"{block}.{n}.xlstm" for n in range(3)}
    assert not dropout_sites(v1_config())


@in_pairs(twin=TWINS, changes=CONFIGS, parts=[[1] * 11, [3, 1, 5, 2]])
def test_a_sequence_in_parts_gives_the_logits_of_the_whole(
    twin: Twin, changes: dict[str, Any], parts: list[int]
) -> None:
    cfg = v1_config(**changes)
    params = perturbed_params(cfg, seed=1)
    tokens, _ = batch(cfg, 2, sum(parts), seed=1)
    whole, _ = twin.logits(cfg, params, tokens)

    state, result = twin.zero_state(cfg, 2), []
    for part in np.split(tokens, np.cumsum(parts)[:-1], axis=1):
        logits, state = twin.logits(cfg, params, np.ascontiguousarray(part), state)
        result.append(logits)
    assert_close(np.concatenate(result, 1), whole, LOGITS_F32)


@all_twins
def test_documents_in_one_sequence_compute_what_they_compute_alone(twin: Twin) -> None:
    cfg = v1_config(reset_at_document_boundaries=True, bos_token_id=0, slstm_at=[0, 2])
    params = perturbed_params(cfg, seed=2)
    rng = np.random.default_rng(2)
    documents = [
        np.concatenate([[0], rng.integers(1, cfg.vocab_size, length)]).astype(np.int32)[None]
        for length in (4, 1, 7)
    ]
    packed, _ = twin.logits(cfg, params, np.concatenate(documents, 1))
    alone = [twin.logits(cfg, params, document)[0] for document in documents]
    assert_close(packed, np.concatenate(alone, 1), LOGITS_F32)
    run_on, _ = twin.logits(v1_config(slstm_at=[0, 2]), params, np.concatenate(documents, 1))
    assert np.abs(run_on - packed).max() > 0.01


@configs
def test_every_gradient_of_the_reference_is_the_change_of_the_loss(changes: dict[str, Any]) -> None:
    cfg = v1_config(**changes)
    params = {k: v.astype(np.float64) for k, v in perturbed_params(cfg, seed=3).items()}
    _assert_slopes(cfg, params, masks=None)


def test_gradients_with_dropout_are_the_change_of_the_loss() -> None:
    cfg = v1_config(**DROPPING)
    params = {k: v.astype(np.float64) for k, v in perturbed_params(cfg, seed=4).items()}
    _assert_slopes(cfg, params, lm.dropout_masks(cfg, (2, 6), seed=7))


def _assert_slopes(cfg: Any, params: dict[str, Any], masks: Any) -> None:
    tokens, labels = batch(cfg, 2, 6, seed=4)
    rng = np.random.default_rng(5)

    def loss(moved: dict[str, Any]) -> float:
        return lm_numpy.differentiate(cfg, moved, tokens, labels, masks=masks)[0]

    _, grads = lm_numpy.differentiate(cfg, params, tokens, labels, masks=masks)
    for name, value in params.items():
        way = rng.normal(size=value.shape)
        slope = (
            loss(params | {name: value + 1e-6 * way}) - loss(params | {name: value - 1e-6 * way})
        ) / 2e-6
        assert_close((grads[name] * way).sum(), slope, FINITE_DIFFERENCE, label=name)
