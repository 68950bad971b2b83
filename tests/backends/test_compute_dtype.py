"""Products in bfloat16 leave everything else of a training step in float32."""

import numpy as np
import pytest

from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError
from mlxhog.models import families, lm
from tests.backends.untrained import NAMES, bound, values
from tests.models.sample import batch, config, perturbed_params, v1_config
from tests.tolerances import GRADIENT_BF16, LOSS_BF16, assert_close

MODELS = {
    "large": config(use_bias=True),
    "tied": config(tie_word_embeddings=True),
    "v1": v1_config(bias=True),
}
on_both = pytest.mark.parametrize("name", NAMES)
of_each = pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)


@on_both
@of_each
def test_loss_and_gradients_are_near_those_of_float32_and_arrive_in_float32(name, cfg):
    # With wide open gates a denominator may pass near 0, and no rounding is small there.
    params = families.init_params(cfg, seed=3)
    text = Batch(*batch(cfg, 3, 14, seed=3), n_bytes=0)
    wanted_loss, expected = bound(name, cfg, params).loss_and_grads(text)
    narrow = bound(name, cfg, params, compute_dtype="bfloat16")
    loss, grads = narrow.loss_and_grads(text)
    assert loss != wanted_loss
    assert_close(loss, wanted_loss, LOSS_BF16)
    assert grads.keys() == expected.keys()
    actual, exact = values(grads), values(expected)
    assert {grad.dtype for grad in actual.values()} == {np.dtype(np.float32)}
    apart, size = (
        np.linalg.norm(np.concatenate([x.ravel() for x in all_of_them]))
        for all_of_them in ([actual[name] - exact[name] for name in exact], exact.values())
    )
    assert_close(apart / size, 0.0, GRADIENT_BF16)
    assert narrow.inbox.dtype == np.float32


@on_both
@of_each
def test_products_alone_are_given_in_bfloat16(name, cfg, monkeypatch):
    given, right = {}, lm.mean_loss

    def mean_loss(model, params, *arrays, **how):
        given.update((key, str(x.dtype)) for key, x in params.items())
        return right(model, params, *arrays, **how)

    monkeypatch.setattr(lm, "mean_loss", mean_loss)
    backend = bound(name, cfg, perturbed_params(cfg, seed=0), compute_dtype="bfloat16")
    backend.loss_and_grads(Batch(*batch(cfg, 2, 9, seed=0), n_bytes=0))
    narrow = {key for key, kind in given.items() if kind.endswith("bfloat16")}
    assert narrow == families.products(cfg)
    assert {kind.rpartition(".")[2] for kind in given.values()} == {"float32", "bfloat16"}


@on_both
def test_evaluation_and_generation_stay_in_float32(name):
    cfg = config()
    params = perturbed_params(cfg, seed=1)
    text = Batch(*batch(cfg, 2, 9, seed=1), n_bytes=0)
    exact = bound(name, cfg, params, "reference")
    narrow = bound(name, cfg, params, "reference", compute_dtype="bfloat16")
    assert narrow.evaluate(text) == exact.evaluate(text)
    assert np.array_equal(narrow.logits(text.x, None)[0], exact.logits(text.x, None)[0])


@on_both
def test_kernels_that_cannot_compute_in_a_type_are_refused(name):
    with pytest.raises(ConfigError, match="'native', which cannot compute with bfloat16 weights"):
        bound(name, config(), None, "native", compute_dtype="bfloat16")
