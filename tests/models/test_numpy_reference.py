"""The float64 reference equals the recorded float64 runs, and its gradient is the gradient."""

import numpy as np
import pytest

from mlxhog.models import lm_float64
from mlxhog.models.ops.reference import mlstm_numpy
from tests.models.golden import CELLS, MODELS, TRAINED, cell_case, model_case
from tests.models.sample import cell_inputs, config, perturbed_params
from tests.models.twins import assert_slopes
from tests.pairs import each_of
from tests.tolerances import (
    FINITE_DIFFERENCE,
    FLOAT64,
    FLOAT64_CELL,
    FORMS_F64,
    GRADIENT_F32,
    assert_close,
)


@each_of("name", MODELS)
def test_logits_equal_the_recorded_float64_ones(name):
    case = model_case(name)
    x = lm_float64.embed(case.cfg, case.params, case.tokens)
    logits, _ = lm_float64.forward(case.cfg, case.params, x)
    assert_close(logits, case.tensors["logits_f64"], FLOAT64)


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_every_gradient_equal_the_recorded_ones(name):
    case = model_case(name)
    loss, grads = lm_float64.differentiate(case.cfg, case.params, case.tokens, case.labels)
    assert_close(loss, case.tensors["loss_f64"][0], FLOAT64)
    for parameter, recorded in case.grads.items():
        assert_close(grads[parameter], recorded, GRADIENT_F32, label=parameter)


@each_of("name", CELLS)
def test_all_forms_of_the_cell_equal_the_recorded_float64_ones(name):
    case = cell_case(name)
    inputs = [value.astype(np.float64) for value in case.inputs.values()]
    h, state, _ = mlstm_numpy.recurrent(*inputs, eps=case.eps, state=case.state)
    h_chunkwise, state_chunkwise = mlstm_numpy.chunkwise(
        *inputs, chunk_size=case.chunk_size, eps=case.eps, state=case.state
    )
    for form in case.forms():
        assert_close(h, case.h(form), FLOAT64_CELL, label=f"recurrent, {form}")
        assert_close(h_chunkwise, case.h(form), FLOAT64_CELL, label=f"chunkwise, {form}")
        for part, other, recorded in zip(
            state, state_chunkwise, case.last_state(form), strict=True
        ):
            assert_close(part, recorded, FLOAT64_CELL, label=f"recurrent state, {form}")
            assert_close(other, recorded, FLOAT64_CELL, label=f"chunkwise state, {form}")
    if case.state is None:
        h_parallel, _ = mlstm_numpy.parallel(*inputs, eps=case.eps)
        assert_close(h_parallel, case.h("parallel_f64"), FLOAT64_CELL, label="parallel")
        assert_close(h_parallel, h, FORMS_F64, label="parallel against recurrent")


@each_of("name", CELLS)
def test_gradients_of_the_cell_equal_the_recorded_float64_ones(name):
    case = cell_case(name)
    inputs = [value.astype(np.float64) for value in case.inputs.values()]
    _, _, backward = mlstm_numpy.recurrent(*inputs, eps=case.eps, state=case.state)
    *grads, dC, dn, _ = backward(case.h_weight.astype(np.float64))
    for form in case.forms():
        for grad, letter in zip(grads, "qkvif", strict=True):
            assert_close(grad, case.grad(form, letter), FLOAT64_CELL, label=f"{form} {letter}")
        if case.state is not None:
            assert_close(dC, case.recorded[f"{form}.grad_c_initial"], FLOAT64_CELL, label="C")
            assert_close(dn, case.recorded[f"{form}.grad_n_initial"], FLOAT64_CELL, label="n")


@each_of("name", [name for name in CELLS if name != "mlstm_cell_c_init"])
def test_gradients_of_the_parallel_form_equal_the_recorded_float64_ones(name):
    case = cell_case(name)
    inputs = [value.astype(np.float64) for value in case.inputs.values()]
    _, backward = mlstm_numpy.parallel(*inputs, eps=case.eps)
    for grad, letter in zip(backward(case.h_weight.astype(np.float64)), "qkvif", strict=True):
        assert_close(grad, case.grad("parallel_f64", letter), FLOAT64_CELL, label=letter)


@each_of("eps", [1e-3, 0.1])
@each_of("S", [1, 6])
def test_gradients_of_the_cell_and_of_its_states_are_the_change_of_the_results(eps, S):
    B, NH, DK, DV = 2, 2, 3, 4
    rng = np.random.default_rng(S)
    state = {"C": (B, NH, DK, DV), "n": (B, NH, DK), "m": (B, NH)}
    x = {k: v.astype(np.float64) for k, v in cell_inputs(B, S, NH, DK, DV, seed=S).items()}
    dh = rng.normal(size=x["v"].shape)
    d_last = [rng.normal(size=shape) for shape in state.values()]

    def recurrent(y):
        sequence, first_state = [y[name] for name in "qkvif"], [y[name] for name in state]
        h, last, backward = mlstm_numpy.recurrent(*sequence, eps=eps, state=first_state)
        total = (h * dh).sum() + sum((a * b).sum() for a, b in zip(last, d_last, strict=True))
        return float(total), lambda: backward(dh, d_last)

    def parallel(y):
        h, backward = mlstm_numpy.parallel(*(y[name] for name in "qkvif"), eps=eps)
        return float((h * dh).sum()), lambda: backward(dh)

    with_state = x | {name: rng.normal(size=shape) for name, shape in state.items()}
    for form, y in ((recurrent, with_state), (parallel, x)):
        for (name, value), grad in zip(y.items(), form(y)[1](), strict=True):
            way = rng.normal(size=value.shape)
            ahead, behind = (form(y | {name: value + step * way})[0] for step in (1e-6, -1e-6))
            slope, label = (ahead - behind) / 2e-6, f"{form.__name__} {name}"
            assert_close((grad * way).sum(), slope, FINITE_DIFFERENCE, label=label)


@pytest.mark.slow
@pytest.mark.parametrize("use_bias", [False, True])
def test_every_gradient_of_the_model_is_the_change_of_the_loss(use_bias):
    cfg = config(use_bias=use_bias, v_dim_factor=1.5, eps=1e-3)
    params = {k: v.astype(np.float64) for k, v in perturbed_params(cfg, seed=3).items()}
    assert_slopes(cfg, params)
