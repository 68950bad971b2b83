"""Frozen contexts: a prompt's state is read, and no gradient flows into the prompt."""

import numpy as np
import pytest

from mlxhog.backends.mlx import MLXBackend
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.models import families, lm_float64
from mlxhog.models.registry import load_candidate
from mlxhog.optim.gradients import Rows
from tests.backends.untrained import bound
from tests.models.sample import SMALLEST, config, perturbed_params, v1_config
from tests.tolerances import GRADIENT_ANY_F32, LOSS_F32, assert_close

NAMES = ("torch:cpu", "mlx:cpu")
MODELS = {"xlstm": config(), "xlstm_v1": v1_config()}


def examples(cfg, *, frozen):
    """Three rows whose contexts have 5, 0 and 9 inputs; tokens below 8 are in the contexts only."""
    rng = np.random.default_rng(3)
    x = rng.integers(8, cfg.vocab_size, (3, 12), dtype=np.int32)
    y = np.full(x.shape, IGNORED, np.int32)
    for row, (context, end) in enumerate(((5, 12), (0, 4), (9, 11))):
        x[row, :context] = rng.integers(0, 8, context)
        x[row, end:] = x[row, end - 1]
        y[row, context:end] = rng.integers(0, cfg.vocab_size, end - context)
    return Batch(x, y, n_bytes=0, frozen=frozen)


def reference(cfg, params, batch):
    """Loss and gradient in float64, a row at a time: the state behind a context is a constant."""
    grads = {name: np.zeros(value.shape) for name, value in params.items()}
    nats, total = 0.0, batch.n_labels
    for x, y in zip(batch.x, batch.y, strict=True):
        begin, state = int((y != IGNORED).argmax()), None
        if begin:
            context = lm_float64.embed(cfg, params, x[None, :begin])
            _, state = lm_float64.forward(cfg, params, context)
        rest = x[None, begin:], y[None, begin:]
        loss, own = lm_float64.differentiate(cfg, params, *rest, state=state)
        share = (y != IGNORED).sum() / total
        nats += loss * share
        for name, grad in own.items():
            grads[name] += share * grad
    return nats, grads


def dense(grad, shape):
    if not isinstance(grad, Rows):
        return grad
    whole = np.zeros(shape, np.float32)
    np.add.at(whole, grad.index, grad.values)
    return whole


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_the_gradient_is_that_of_the_completion_behind_a_constant_state(name, kernels, family):
    cfg = MODELS[family]
    params = perturbed_params(cfg, seed=1)
    batch = examples(cfg, frozen=True)
    loss, grads = bound(name, cfg, params, kernels).loss_and_grads(batch)
    expected, wanted_grads = reference(cfg, params, batch)
    assert_close(loss, expected, LOSS_F32)
    for parameter, value in params.items():
        grad = dense(grads[parameter], value.shape)
        assert_close(grad, wanted_grads[parameter], GRADIENT_ANY_F32, label=parameter)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_context_changes_no_loss_and_touches_no_row_of_the_embedding(name):
    cfg = MODELS["xlstm"]
    backend = bound(name, cfg, perturbed_params(cfg, seed=1))
    trained, all_grads = backend.loss_and_grads(examples(cfg, frozen=False))
    rows_of_all = {*np.asarray(all_grads[families.embedding(cfg)].index).tolist()}
    frozen, grads = backend.loss_and_grads(examples(cfg, frozen=True))
    rows = {*np.asarray(grads[families.embedding(cfg)].index).tolist()}
    assert_close(frozen, trained, LOSS_F32)
    assert min(rows) >= 8
    assert min(rows_of_all) < 8


@pytest.mark.parametrize("line", ["mlstm swiglu", "mh-attention swiglu", "mamba hyena"])
def test_other_layers_take_frozen_contexts_as_well(line):
    cfg = load_candidate(line)
    params = perturbed_params(cfg, seed=1)
    losses = []
    for name in NAMES:
        for frozen in (True, False):
            loss, grads = bound(name, cfg, params).loss_and_grads(examples(cfg, frozen=frozen))
            assert all(np.isfinite(dense(grads[k], params[k].shape)).all() for k in params)
            losses.append(loss)
    assert_close(losses, [losses[0]] * 4, LOSS_F32)


@pytest.mark.slow
def test_a_compiled_gradient_takes_a_state():
    cfg = SMALLEST
    params = perturbed_params(cfg, seed=1)
    plain = bound("mlx:cpu", cfg, params, "reference")
    loss, grads = plain.loss_and_grads(examples(cfg, frozen=True))
    assert isinstance(plain, MLXBackend)
    plain._value_and_grad = plain._mx.compile(plain._value_and_grad)
    again, compiled = plain.loss_and_grads(examples(cfg, frozen=True))
    assert_close(again, loss, LOSS_F32)
    for name, value in params.items():
        assert_close(
            dense(compiled[name], value.shape), dense(grads[name], value.shape), GRADIENT_ANY_F32
        )


class Traced(Exception):
    """A gradient that was traced."""


@pytest.mark.parametrize("family", MODELS)
def test_a_gradient_of_xlstm_is_traced_with_a_state_and_nothing_in_it_evaluates(
    family, monkeypatch
):
    cfg = MODELS[family]
    backend = bound("mlx:cpu", cfg, perturbed_params(cfg, seed=1), "reference")
    assert isinstance(backend, MLXBackend)
    compiled, results = backend._mx.compile(backend._value_and_grad), []

    def trace(*arguments):
        results.append(compiled(*arguments))
        raise Traced

    monkeypatch.setattr(backend, "_value_and_grad", trace)
    with pytest.raises(Traced):
        backend.loss_and_grads(examples(cfg, frozen=True))
    ((_, (d_params, *_)),) = results
    shapes = [backend.params[name].shape for name in backend._trained]
    assert [grad.shape for grad in d_params] == shapes
