"""The sampled loss of both backends, next to the formula and to the full softmax."""

import numpy as np
import pytest

from mlxhog import arena, backends
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.backends.mlx import MLXBackend
from mlxhog.data.batch import Batch
from mlxhog.models import families, lm_float64
from mlxhog.models.registry import load_architecture
from mlxhog.models.sampled_head import SampledHead
from mlxhog.optim.gradients import Rows
from tests.models.sample import SMALLEST, config, perturbed_params
from tests.models.sample import batch as sample_batch
from tests.pairs import each_of
from tests.tolerances import GRADIENT_ANY_F32, LOSS_F32, assert_close

NAMES = ("torch:cpu", "mlx:cpu")
on_both = pytest.mark.parametrize("name", NAMES)
KERNELS = pytest.mark.parametrize("kernels", ["reference", "auto"])


def lay(backend, cfg, params, head):
    """The backend with these parameters and a sampled head."""
    layout = arena.plan(families.param_spec(cfg), max_workers=1, n_tickets=1)
    backend.bind(cfg, layout.slots, layout.n_floats, None, head)
    for parameter, slot in layout.slots.items():
        backend.inbox[slot.offset : slot.offset + slot.size] = params[parameter].ravel()
    backend.refresh()
    return backend


def sampled(name, cfg, params, head, kernels="auto"):
    backend = backends.create(name, threads=1, kernels=kernels, cpu_blas="auto")
    return lay(backend, cfg, params, head)


def some_of(cfg, n):
    return SampledHead(n, np.linspace(1, 3, cfg.vocab_size))


def small_batch(cfg, seed=5):
    x, y = sample_batch(cfg, 2, 4, seed=seed)
    return Batch(x, y, n_bytes=0, seed=seed)


def formula(cfg, params, head, batch):
    """-s_y + log(sum over targets of exp(s) + sum over drawn ones of exp(s) / pi), float64."""
    logits, _ = lm_float64.forward(cfg, params, lm_float64.embed(cfg, params, batch.x))
    candidates = head.draw(batch.y, batch.seed)
    z = np.sum(
        np.exp(logits[..., candidates.ids]) * np.exp(-candidates.log_inclusion.astype(float)), -1
    )
    counted = batch.y >= 0
    own = np.take_along_axis(logits, np.maximum(batch.y, 0)[..., None], -1)[..., 0]
    return float(np.mean((np.log(z) - own)[counted]))


@on_both
@KERNELS
@each_of("cap", [30.0, 2.0])
def test_the_loss_is_the_formula_on_the_logits_of_the_float64_reference(name, kernels, cap):
    cfg = config(output_logit_soft_cap=cap)
    params, batch, head = perturbed_params(cfg, seed=5), small_batch(cfg), some_of(cfg, 6)
    loss, _ = sampled(name, cfg, params, head, kernels).loss_and_grads(batch)
    assert_close(loss, formula(cfg, params, head, batch), LOSS_F32)


@on_both
@KERNELS
def test_enough_draws_give_the_loss_and_the_gradient_of_the_full_softmax(name, kernels):
    cfg = config()
    params, batch = perturbed_params(cfg, seed=5), small_batch(cfg)
    wanted_loss, expected = lm_float64.differentiate(cfg, params, batch.x, batch.y)
    backend = sampled(name, cfg, params, some_of(cfg, cfg.vocab_size), kernels)
    loss, grads = backend.loss_and_grads(batch)
    assert_close(loss, wanted_loss, LOSS_F32)
    assert grads.keys() == families.param_spec(cfg).keys()
    for parameter, grad in grads.items():
        assert_close(whole(grad, params[parameter]), expected[parameter], GRADIENT_ANY_F32)


def whole(grad, like):
    if not isinstance(grad, Rows):
        return grad
    dense = np.zeros(like.shape)
    dense[grad.index] = grad.values
    return dense


@pytest.mark.parametrize("model", ["large", "7to1-tiny", "mad-7to1"])
def test_mlx_and_torch_agree_on_the_loss_and_every_gradient(model):
    cfg = config() if model == "large" else load_architecture(model)
    params, batch = perturbed_params(cfg, seed=2), small_batch(cfg)
    both = [
        sampled(name, cfg, params, some_of(cfg, 6), "reference").loss_and_grads(batch)
        for name in NAMES
    ]
    assert_close(both[0][0], both[1][0], LOSS_F32)
    for parameter, grad in both[0][1].items():
        other = both[1][1][parameter]
        a, b = whole(grad, params[parameter]), whole(other, params[parameter])
        assert_close(a, b, GRADIENT_ANY_F32, label=parameter)


@on_both
def test_the_gradient_of_the_head_is_the_rows_of_the_candidates(name):
    cfg = config()
    params, batch, head = perturbed_params(cfg, seed=5), small_batch(cfg), some_of(cfg, 6)
    _, grads = sampled(name, cfg, params, head).loss_and_grads(batch)
    actual = grads["lm_head.weight"]
    assert isinstance(actual, Rows)
    np.testing.assert_array_equal(actual.index, head.draw(batch.y, batch.seed).ids)
    assert actual.values.any(axis=1).all()


@on_both
def test_evaluation_takes_the_whole_vocabulary(name):
    cfg = config()
    params, batch = perturbed_params(cfg, seed=5), small_batch(cfg)
    expected = lm_float64.loss(cfg, params, batch.x, batch.y)
    score = sampled(name, cfg, params, some_of(cfg, 6)).evaluate(batch)
    assert_close(score.nats / score.targets, expected, LOSS_F32)


def test_a_compiled_gradient_sees_the_same_shapes_for_every_batch_and_gives_the_same():
    cfg = SMALLEST
    params, head = perturbed_params(cfg, seed=5), some_of(cfg, 6)
    plain, compiled = (
        lay(
            MLXBackend(
                "mlx:cpu",
                threads=1,
                kernels="reference",
                cpu_blas="reference",
                share=GPUShare(),
                compiled=compiled,
            ),
            cfg,
            params,
            head,
        )
        for compiled in (False, True)
    )
    for seed in range(3):
        batch = small_batch(cfg, seed)
        loss, grads = compiled.loss_and_grads(batch)
        wanted_loss, expected = plain.loss_and_grads(batch)
        assert_close(loss, wanted_loss, LOSS_F32)
        for parameter, grad in expected.items():
            a, b = whole(grads[parameter], params[parameter]), whole(grad, params[parameter])
            assert_close(a, b, GRADIENT_ANY_F32, label=parameter)
