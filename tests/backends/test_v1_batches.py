"""Both backends compute the same for a mixed stack, with the same units dropped in training."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.data.batch import Batch
from mlxhog.models import families, lm, lm_float64
from tests.backends.untrained import bound
from tests.models.sample import batch, perturbed_params, v1_config
from tests.tolerances import GRADIENT_ANY_F32, LOSS_F32, assert_close

NAMES = ("torch:cpu", "mlx:cpu")
on_both = pytest.mark.parametrize("name", NAMES)

CFG = v1_config(
    dropout=0.25,
    add_embedding_dropout=True,
    reset_at_document_boundaries=True,
    bos_token_id=2,
)
PARAMS = perturbed_params(CFG, seed=5)
X, Y = batch(CFG, 3, 14, seed=5)
BATCH = Batch(X, Y, n_bytes=0, seed=11)


def dense(grads):
    """Gradients in the shapes of the parameters."""
    results = {}
    for name, grad in grads.items():
        if isinstance(grad, np.ndarray):
            results[name] = np.array(grad)
        else:
            results[name] = np.zeros(PARAMS[name].shape, np.float32)
            results[name][grad.index] = grad.values
    return results


@on_both
def test_a_batch_drops_the_units_that_its_seed_says(name):
    masks = lm.dropout_masks(CFG, X.shape, BATCH.seed)
    wanted_loss, expected = lm_float64.differentiate(CFG, PARAMS, X, Y, masks=masks)
    backend = bound(name, CFG, PARAMS)
    loss, grads = backend.loss_and_grads(BATCH)
    assert_close(loss, wanted_loss, LOSS_F32)
    assert grads.keys() == families.param_spec(CFG).keys()
    for parameter, grad in dense(grads).items():
        assert_close(grad, expected[parameter], GRADIENT_ANY_F32, label=parameter)
    assert backend.loss_and_grads(BATCH)[0] == loss
    assert backend.loss_and_grads(replace(BATCH, seed=12))[0] != loss


@on_both
def test_evaluation_drops_nothing(name):
    whole, _ = lm_float64.differentiate(CFG, PARAMS, X, Y)
    score = bound(name, CFG, PARAMS).evaluate(BATCH)
    assert_close(score.nats / score.targets, whole, LOSS_F32)


def test_a_mask_keeps_the_mean_and_drops_its_share():
    masks = lm.dropout_masks(CFG, (64, 100), seed=0)
    assert masks is not None
    assert masks.keys() == families.dropout_sites(CFG).keys()
    for site, mask in masks.items():
        assert mask.shape == (64, 100, 16)
        assert set(np.unique(mask)) == {np.float32(0), np.float32(4 / 3)}, site
        assert abs((mask == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / mask.size)
    first, second, *_ = masks.values()
    assert (first != second).any()
    again = lm.dropout_masks(CFG, (64, 100), seed=1)
    assert again is not None
    assert all((again[site] != mask).any() for site, mask in masks.items())
