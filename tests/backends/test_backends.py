"""What holds for the backends of this machine, whatever the framework."""

import mlx.core as mx
import numpy as np
import pytest

from mlxhog.backends.gpu_share import MLXCache
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.errors import DataError
from mlxhog.models import families, lm_float64
from tests.backends.untrained import bound
from tests.models.sample import batch as sample_batch
from tests.models.sample import config, perturbed_params
from tests.tolerances import GRADIENT_ANY_F32, LOGITS_F32, LOSS_F32, assert_close

NAMES = ("torch:cpu", "mlx:cpu")
on_both = pytest.mark.parametrize("name", NAMES)


@on_both
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_gradients_of_a_batch_equal_the_float64_reference(name, tied, reset):
    cfg = config(tie_word_embeddings=tied, reset_at_document_boundaries=reset, bos_token_id=2)
    params = perturbed_params(cfg, seed=5)
    x, y = sample_batch(cfg, 3, 14, seed=5)
    wanted_loss, expected = lm_float64.differentiate(cfg, params, x, y)
    backend = bound(name, cfg, params)
    loss, grads = backend.loss_and_grads(Batch(x, y, n_bytes=0))
    assert_close(loss, wanted_loss, LOSS_F32)
    for parameter, grad in grads.items():
        if isinstance(grad, np.ndarray):
            dense = grad
        else:
            dense = np.zeros(params[parameter].shape)
            dense[grad.index] = grad.values
        assert_close(dense, expected[parameter], GRADIENT_ANY_F32, label=parameter)
    assert grads.keys() == families.param_spec(cfg).keys()
    score = backend.evaluate(Batch(x, y, n_bytes=0))
    assert_close(score.nats / score.targets, wanted_loss, LOSS_F32)


@on_both
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_a_gradient_is_not_changed_by_the_next_one(name, kernels):
    """Its step may be added meanwhile."""
    cfg = config()
    backend = bound(name, cfg, perturbed_params(cfg, seed=1), kernels)
    first, other = (Batch(*sample_batch(cfg, 2, 11, seed=k), n_bytes=0) for k in (1, 2))
    _, grads = backend.loss_and_grads(first)
    before = {name: getattr(grad, "values", grad).copy() for name, grad in grads.items()}
    backend.inbox *= 0.5
    backend.refresh()
    _, later = backend.loss_and_grads(other)
    for parameter, grad in grads.items():
        kept = getattr(grad, "values", grad)
        np.testing.assert_array_equal(kept, before[parameter])
        assert not np.shares_memory(kept, getattr(later[parameter], "values", later[parameter]))


@on_both
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_a_cpu_tells_the_forward_pass_of_a_gradient_from_the_rest(name, kernels):
    cfg = config()
    backend = bound(name, cfg, perturbed_params(cfg, seed=1), kernels)
    assert backend.forward_share is None
    backend.loss_and_grads(Batch(*sample_batch(cfg, 2, 11, seed=1), n_bytes=0))
    assert backend.forward_share is not None
    assert 0 < backend.forward_share < 1


@on_both
def test_logits_after_some_tokens_do_not_depend_on_how_they_are_read(name):
    cfg = config()
    tokens, _ = sample_batch(cfg, 2, 11, seed=1)
    backend = bound(name, cfg, perturbed_params(cfg, seed=1))
    whole, _ = backend.logits(tokens, None)
    state = None
    for begin, end in ((0, 1), (1, 7), (7, 11)):
        pieces, state = backend.logits(tokens[:, begin:end], state)
    assert_close(pieces, whole, LOGITS_F32)


@on_both
@pytest.mark.parametrize("wrong", [-1, 23, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_named_with_its_place(name, wrong):
    cfg = config()
    backend = bound(name, cfg, perturbed_params(cfg, seed=0))
    x, y = sample_batch(cfg, 2, 6, seed=0)
    x[1, 4] = wrong
    message = f"token {wrong} at position 4 of sequence 1 is outside the vocabulary of 23 ids"
    for call in (backend.loss_and_grads, backend.evaluate):
        with pytest.raises(DataError, match=message):
            call(Batch(x, y, n_bytes=0))
    with pytest.raises(DataError, match=message):
        backend.logits(x, None)
    with pytest.raises(DataError, match=message.replace("token", "label")):
        backend.loss_and_grads(Batch(np.zeros_like(x), x, n_bytes=0))


@on_both
def test_a_batch_without_positions_is_refused(name):
    cfg = config()
    backend = bound(name, cfg, perturbed_params(cfg, seed=0))
    nothing = np.zeros((2, 0), np.int32)
    with pytest.raises(DataError, match=r"tokens have shape \(2, 0\)"):
        backend.loss_and_grads(Batch(nothing, nothing, n_bytes=0))
    with pytest.raises(DataError, match=r"tokens have shape \(2, 0\)"):
        backend.logits(nothing, None)


@on_both
def test_labels_of_another_shape_are_refused(name):
    cfg = config()
    backend = bound(name, cfg, perturbed_params(cfg, seed=0))
    x, y = sample_batch(cfg, 2, 6, seed=0)
    with pytest.raises(DataError, match=r"labels have shape \(2, 5\), tokens \(2, 6\)"):
        backend.evaluate(Batch(x, y[:, 1:], n_bytes=0))


@on_both
def test_a_batch_in_which_nothing_is_scored_has_no_loss_and_no_gradient(name):
    cfg = config()
    backend = bound(name, cfg, perturbed_params(cfg, seed=0))
    x, _ = sample_batch(cfg, 2, 6, seed=0)
    loss, grads = backend.loss_and_grads(Batch(x, np.full_like(x, IGNORED), n_bytes=0))
    assert loss == 0.0
    assert not grads["lm_head.weight"].any()


def test_mlx_keeps_the_freed_arrays_of_a_gradient_for_the_next(monkeypatch):
    cfg, limits = config(), list[int]()
    backend = bound("mlx:cpu", cfg, perturbed_params(cfg, seed=1))
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    backend._cache = MLXCache(mx, 0)
    batches = [Batch(*sample_batch(cfg, 4, S, seed=0), n_bytes=0) for S in (16, 64, 16)]
    for batch in batches:
        backend.loss_and_grads(batch)
    one, four_times = limits
    assert four_times > 2 * one
    assert one > 4 * 4 * 16 * cfg.vocab_size, "the logits alone"
