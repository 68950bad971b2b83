"""Every form of the mLSTM cell computes the same, and its gradient is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxhog.models.ops.reference import mlstm_numpy
from mlxhog.models.ops.reference.mlstm import MOST_CHUNKS
from tests.models.golden import CELLS, cell_case
from tests.models.sample import cell_inputs
from tests.models.twins import TWINS, Twin
from tests.pairs import each_of, in_pairs
from tests.tolerances import (
    CELL_EXTREME_F32,
    CELL_F32,
    CELL_GRADIENT_F32,
    GRADIENT_ANY_F32,
    STATE_F32,
    assert_close,
)

Array = NDArray[Any]
Arrays = dict[str, Array]
STATE = ("C", "n", "m")


@dataclass(frozen=True)
class Form:
    """A form of the cell in one framework, on arrays by name; C, n and m may be missing."""

    twin: Twin
    run: Callable[..., Any]
    recorded: tuple[str, ...] = ("chunkwise_f64", "chunkwise_padded_f64", "recurrent_f64")

    def __call__(self, inputs, **how):
        """h and, where the form has one, the last C, n and m."""
        arrays = {name: self.twin.array(x) for name, x in inputs.items()}
        results = self.run(self.twin.ops, arrays, **how)
        return tuple(self.twin.numpy(x) for x in results)

    def grads(self, inputs, weights, **how):
        """Of the sum of as many results as there are weights, each weighted."""
        w = [self.twin.array(weight) for weight in weights]

        def total(ops, arrays):
            results = self.run(ops, arrays, **how)
            return sum((x * weight).sum() for x, weight in zip(results, w, strict=False))

        return self.twin.op_grads(total, inputs)


def of_ops(framework, kernels):
    def run(ops, x, *, chunk_size, eps):
        h, state = ops.mlstm_cell(*sequence(x), chunk_size=chunk_size, eps=eps, state=given(x))
        return h, *state

    return Form(Twin(framework, kernels), run)


def of_plain(twin):
    def chunkwise(ops, x, **how):
        h, state = ops.form.mlstm_chunkwise(*sequence(x), **how, state=given(x))
        return h, *state

    def recurrent(ops, x, *, eps, **_):
        h, state = ops.form.mlstm_recurrent(*sequence(x), eps=eps, state=given(x))
        return h, *state

    return {"chunkwise": Form(twin, chunkwise), "recurrent": Form(twin, recurrent)}


def sequence(x):
    return [x[name] for name in "qkvif"]


def given(x):
    return tuple(x[name] for name in STATE) if "C" in x else None


PLAIN = {framework: of_plain(Twin(framework, "reference")) for framework in ("torch", "mlx")}
FORMS = {
    f"{framework}-{form}": PLAIN[framework][form]
    for framework in PLAIN
    for form in ("chunkwise", "recurrent")
} | {
    f"{framework}-{kernels}": of_ops(framework, kernels)
    for framework in PLAIN
    for kernels in ("reference", "native", "metal-emulated")
}
forms = each_of("form", FORMS.values(), ids=FORMS)
frameworks = each_of("framework", PLAIN)

SIZES = {f"S={S}": S for S in (1, 4, 7, 33)}
EPS = (1e-6, 1e-3, 0.1)
WIDTHS = (2, 3, 5)  # NH, DK, DV


def sample(S, *, state):
    """Inputs of two sequences, and weights of h, C, n and m."""
    NH, DK, DV = WIDTHS
    rng = np.random.default_rng(S)
    parts = [(2, NH, DK, DV), (2, NH, DK), (2, NH)]
    x = cell_inputs(2, S, *WIDTHS, seed=S)
    if state:
        x |= {n: rng.standard_normal(p, np.float32) for n, p in zip(STATE, parts, strict=True)}
    return x, [rng.standard_normal(p, np.float32) for p in ((2, S, NH, DV), *parts)]


def in_float64(x, eps):
    """Results of the recurrence, and its gradients from those of h and of the last state."""
    exact = {name: value.astype(np.float64) for name, value in x.items()}
    h, last, backward = mlstm_numpy.recurrent(*sequence(exact), eps=eps, state=given(exact))
    names = (*"qkvif", *STATE)

    def grads(dh, *d_last):
        result = backward(dh.astype(np.float64), [d.astype(np.float64) for d in d_last] or None)
        return {name: g for name, g in zip(names, result, strict=True) if name in x}

    return [h, *last], grads


def tolerance(name):
    """Of the output in a recorded case."""
    return CELL_EXTREME_F32 if name == "mlstm_cell_d_extreme" else CELL_F32


@pytest.mark.slow
@forms
@each_of("name", CELLS)
def test_outputs_states_and_gradients_equal_the_recorded_ones(form, name):
    case = cell_case(name)
    inputs = case.inputs | dict(zip(STATE, case.state or (), strict=False))
    how = {"chunk_size": case.chunk_size, "eps": case.eps}
    h, *last = form(inputs, **how)
    grads = form.grads(inputs, [case.h_weight], **how)
    recorded = [kind for kind in form.recorded if f"{kind}.h" in case.recorded]
    assert recorded
    for kind in recorded:
        assert_close(h, case.h(kind), tolerance(name), label=kind)
        for part, letter in zip(last, STATE, strict=False):
            expected = case.recorded[f"{kind}.{letter}"].reshape(part.shape)
            assert_close(part, expected, STATE_F32, label=f"{kind} {letter}")
        for letter in "qkvif":
            assert_close(grads[letter], case.grad(kind, letter), GRADIENT_ANY_F32, label=letter)
        for letter in "Cn" if case.state is not None else "":
            expected = case.recorded[f"{kind}.grad_{letter.lower()}_initial"]
            assert_close(grads[letter], expected, GRADIENT_ANY_F32, label=letter)


@pytest.mark.slow
@in_pairs(form=FORMS, eps=EPS, S=SIZES)
def test_gradients_through_output_and_last_state_are_exact_for_any_eps(form, S, eps):
    x, weights = sample(S, state=True)
    results, expected = in_float64(x, eps)
    result = form(x, chunk_size=4, eps=eps)
    for name, a, b in zip(("h", *STATE), result, results, strict=True):
        assert_close(a, b, CELL_F32, label=name)
    grads = form.grads(x, weights, chunk_size=4, eps=eps)
    for name, gradient in expected(*weights).items():
        assert_close(grads[name], gradient, CELL_GRADIENT_F32, label=name)


@pytest.mark.slow
@in_pairs(form=FORMS, eps=EPS, S=SIZES)
def test_gradients_without_a_state_are_exact_for_any_eps(form, S, eps):
    x, (dh, *_) = sample(S, state=False)
    _, expected = in_float64(x, eps)
    exact = expected(dh)
    grads = form.grads(x, [dh], chunk_size=4, eps=eps)
    for name, gradient in exact.items():
        assert_close(grads[name], gradient, CELL_GRADIENT_F32, label=name)


@pytest.mark.slow
@forms
def test_gates_that_are_shut_for_good_give_zeros_and_no_nan(form):
    x, (dh, *_) = sample(7, state=False)
    x["i"] -= 200.0  # v1 has no cap on its gates
    x["f"] -= 100.0
    how = {"chunk_size": 4, "eps": 1e-6}
    np.testing.assert_allclose(form(x, **how)[0], 0.0, atol=1e-30)
    for name, gradient in form.grads(x, [dh], **how).items():
        np.testing.assert_allclose(gradient, 0.0, atol=1e-30, err_msg=name)


@pytest.mark.slow
@forms
@each_of("i, f", [(30.0, 30.0), (88.0, 88.0), (15.0, 60.0)])
def test_gates_far_out_are_those_of_the_float64_recurrence(form, i, f):
    x, (dh, *_) = sample(33, state=False)
    rng = np.random.default_rng(0)
    for name, largest in (("i", i), ("f", f)):
        levels = np.array([-1.0, -0.2, 0.0, 0.2, 1.0], np.float32) * np.float32(largest)
        x[name] = rng.choice(levels, x[name].shape)
    (h, *_), expected = in_float64(x, 1e-6)
    how = {"chunk_size": 4, "eps": 1e-6}
    assert_close(form(x, **how)[0], h, CELL_EXTREME_F32)
    grads = form.grads(x, [dh], **how)
    for name, gradient in expected(dh).items():
        assert_close(grads[name], gradient, CELL_EXTREME_F32, label=name)


@pytest.mark.slow
@forms
def test_a_document_behind_another_computes_what_it_computes_alone(form):
    lengths = (9, 1, 14)
    S = sum(lengths)
    x, (dh, *_) = sample(S, state=False)
    starts = [sum(lengths[:j]) for j in range(len(lengths))]
    x["f"][:, starts] = -25.0  # the reset of a model at the first position of a document
    how = {"chunk_size": 4, "eps": 1e-6}
    h, *_ = form(x, **how)
    grads = form.grads(x, [dh], **how)
    for start, length in zip(starts, lengths, strict=True):
        own = slice(start, start + length)
        alone = {name: np.ascontiguousarray(value[:, own]) for name, value in x.items()}
        assert_close(h[:, own], form(alone, **how)[0], CELL_F32, label=f"from {start}")
        expected = form.grads(alone, [np.ascontiguousarray(dh[:, own])], **how)
        for name in expected:
            label = f"{name} from {start}"
            assert_close(grads[name][:, own], expected[name], CELL_GRADIENT_F32, label=label)


# -- however the sequence is cut ------------------------------------------------------------------


@in_pairs(twin=TWINS, name=CELLS, chunk_size=[1, 7, 64])
def test_the_chunk_size_does_not_change_the_output(twin, name, chunk_size):
    case = cell_case(name)
    h, _ = twin.op(
        "mlstm_cell", *case.inputs.values(), chunk_size=chunk_size, eps=case.eps, state=case.state
    )
    assert_close(h, case.h("recurrent_f64"), tolerance(name))


@frameworks
def test_more_chunks_than_one_product_takes_are_those_of_the_recurrence(framework):
    S = 2 * MOST_CHUNKS + 3
    x, weights = sample(S, state=True)
    form = of_ops(framework, "reference")
    results, expected = in_float64(x, 1e-6)
    for result, exact in zip(form(x, chunk_size=1, eps=1e-6), results, strict=True):
        assert_close(result, exact, CELL_EXTREME_F32)
    grads = form.grads(x, weights, chunk_size=1, eps=1e-6)
    for name, gradient in expected(*weights).items():
        assert_close(grads[name], gradient, GRADIENT_ANY_F32, label=name)


@pytest.mark.slow
@each_of("twin", TWINS.values(), ids=TWINS)
@each_of("name", CELLS)
def test_one_position_at_a_time_gives_the_recorded_output_and_state(twin, name):
    case = cell_case(name)
    state = case.state
    outputs = []
    for t in range(case.inputs["q"].shape[1]):
        now = [value[:, t : t + 1] for value in case.inputs.values()]
        h, state = twin.op("mlstm_cell", *now, chunk_size=16, eps=case.eps, state=state)
        outputs.append(h)
    assert_close(np.concatenate(outputs, 1), case.h("recurrent_f64"), tolerance(name))
    assert state is not None
    for part, recorded in zip(state, case.last_state("recurrent_f64"), strict=True):
        assert_close(part, recorded, STATE_F32)


@forms
@each_of("name", "qkvif")
@each_of("value", [np.nan, np.inf])
def test_a_position_that_is_not_finite_changes_no_bit_before_it(form, name, value):
    x, _ = sample(33, state=False)
    how = {"chunk_size": 16, "eps": 1e-6}
    form = replace(form, twin=replace(form.twin, guarded=True))
    expected = form(x, **how)[0]
    for at in (5, 30):
        bad = x | {name: x[name].copy()}
        bad[name][0, at, 1] = value
        h, *states = form(bad, **how)
        np.testing.assert_array_equal(h[0, :at], expected[0, :at])
        np.testing.assert_array_equal(h[1], expected[1])
        if name in "kv":
            assert not np.isfinite(h[0, at:, 1]).all(-1).any()
            assert all(not np.isfinite(part[0, 1]).all() for part in states[:1])


@each_of("name", "kvif")
def test_nor_in_the_chunks_and_the_parallel_form_of_numpy(name):
    x = {n: v.astype(np.float64) for n, v in sample(33, state=False)[0].items()}
    bad = x | {name: x[name].copy()}
    bad[name][0, 20, 1] = np.nan
    for run in (
        lambda x: mlstm_numpy.chunkwise(*sequence(x), chunk_size=16, eps=1e-6)[0],
        lambda x: mlstm_numpy.parallel(*sequence(x), eps=1e-6)[0],
    ):
        h, expected = run(bad), run(x)
        np.testing.assert_array_equal(h[0, :20], expected[0, :20])
        assert np.isnan(h[0, 20:, 1]).all()
