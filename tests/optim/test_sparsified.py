"""Sparsified steps: what is written, what waits, and that nothing is forgotten."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog import optim
from mlxhog.config.rules import Selection
from mlxhog.optim import SGD, AdamW, Momentum, Sparsified
from mlxhog.optim.gradients import Rows
from mlxhog.optim.sparsified import RESIDUAL
from tests.optim.small import EMBEDDING, MATRIX, SLOTS, N, initial, parameter, target
from tests.optim.test_optimizers import chosen
from tests.pairs import each_of

RULES = {
    "sgd": lambda native: SGD(weight_decay=0.1, native=native),
    "momentum": lambda native: Momentum(weight_decay=0.1, native=native),
    "adamw": lambda native: AdamW(weight_decay=0.1, native=native),
}
each_rule = pytest.mark.parametrize("rule", RULES)
TENTH = Selection("topk", 0.1)


def gradients(seed):
    rng = np.random.default_rng(seed)
    results = {
        name: rng.standard_normal(SLOTS[name].shape, dtype=np.float32)
        for name in ("matrix", "bias")
    }
    rows = rng.choice(11, 4, replace=False).astype(np.int32)
    results["embedding"] = Rows(rows, rng.standard_normal((4, 5), dtype=np.float32))
    return results


def trained(optimizer, steps=6):
    """Parameters and private state after some steps of one worker."""
    flat = initial()
    place = target(optimizer, flat, "matrix", "embedding")
    for step in range(1, steps + 1):
        optimizer.step(place, gradients(step), lr=0.1, step=step, seed=step, grad_scale=0.7)
    return flat, dict(place.private)


@each_rule
def test_a_share_of_one_is_dense_training_bit_for_bit(rule):
    dense, state = trained(RULES[rule](True))
    sparse, sparse_state = trained(Sparsified(RULES[rule](True), Selection("topk", 1.0)))
    np.testing.assert_array_equal(sparse.view(np.uint32), dense.view(np.uint32))
    assert not sparse_state.pop(RESIDUAL).any()
    for name, moments in state.items():
        np.testing.assert_array_equal(sparse_state[name], moments)


@each_rule
@each_of("selection", [TENTH, Selection("threshold", 1.3)], ids=lambda s: s.kind)
@each_of("error_feedback", [True, False])
def test_the_native_form_gives_the_bits_of_the_reference(rule, selection, error_feedback):
    optimizer = [
        trained(
            Sparsified(RULES[rule](native), selection, error_feedback=error_feedback, native=native)
        )
        for native in (True, False)
    ]
    (native_flat, native_state), (flat, state) = optimizer
    np.testing.assert_array_equal(native_flat.view(np.uint32), flat.view(np.uint32))
    assert native_state.keys() == state.keys()
    for name, values in state.items():
        np.testing.assert_array_equal(native_state[name], values, err_msg=name)


def test_what_was_written_and_what_waits_is_every_step_that_was_taken():
    optimizer = Sparsified(SGD(), TENTH)
    flat = np.zeros(N, np.float32)
    place = target(optimizer, flat)
    total = np.zeros(MATRIX.shape, np.float32)
    rng = np.random.default_rng(0)
    for step in range(1, 40):
        grad = rng.integers(-8, 9, MATRIX.shape).astype(np.float32)  # sums of these are exact
        total -= grad
        optimizer.step(place, {"matrix": grad}, lr=1.0, step=step)
        waiting = parameter(place.private[RESIDUAL], MATRIX)
        np.testing.assert_array_equal(parameter(flat, MATRIX) + waiting, total)
    assert np.count_nonzero(waiting) > 0


def test_without_error_feedback_what_is_not_written_is_dropped():
    optimizer = Sparsified(SGD(), TENTH, error_feedback=False)
    assert optimizer.state_segments == ()
    flat = np.zeros(N, np.float32)
    place = target(optimizer, flat)
    grad = np.arange(1, 55, dtype=np.float32).reshape(MATRIX.shape)
    for step in (1, 2):
        optimizer.step(place, {"matrix": grad}, lr=1.0, step=step)
    expected = np.where(grad > 54 - 6, -2 * grad, 0)  # the same six elements, both times
    np.testing.assert_array_equal(parameter(flat, MATRIX), expected)


@each_rule
def test_exactly_the_elements_that_it_says_are_written(rule):
    optimizer = Sparsified(RULES[rule](True), TENTH)
    flat = initial()
    place = target(optimizer, flat, "matrix")
    for step in range(1, 5):
        before, grads = flat.copy(), gradients(step)
        optimizer.step(place, grads, lr=0.1, step=step)
        for name, index in optimizer.written.items():
            changed = parameter(flat, SLOTS[name]) != parameter(before, SLOTS[name])
            np.testing.assert_array_equal(np.flatnonzero(changed), index)
        assert len(optimizer.written["matrix"]) == 6  # of 54
        rows = grads["embedding"]
        assert isinstance(rows, Rows)
        assert len(optimizer.written["embedding"]) == 2  # of the 20 in four rows
        assert set(optimizer.written["embedding"] // 5) <= set(rows.index.tolist())


def test_moments_are_those_of_the_whole_gradient():
    # Not the parameters' own: weight decay is off, so that the steps do not depend on them.
    _, dense = trained(AdamW(weight_decay=0.0))
    _, sparse = trained(Sparsified(AdamW(weight_decay=0.0), TENTH))
    for name in ("m", "v"):
        np.testing.assert_array_equal(sparse[name], dense[name])


def test_a_dense_gradient_of_a_rows_parameter_is_sparsified_as_a_whole():
    optimizer = Sparsified(SGD(), TENTH)
    flat = np.zeros(N, np.float32)
    grad = np.arange(55, dtype=np.float32).reshape(EMBEDDING.shape)
    optimizer.step(target(optimizer, flat), {"embedding": grad}, lr=1.0, step=1)
    assert optimizer.written["embedding"].tolist() == [49, 50, 51, 52, 53, 54]


def test_options_choose_what_is_written():
    assert isinstance(optim.build(chosen()), AdamW)
    optimizer = optim.build(replace(chosen(), sparsify="topk:0.1", error_feedback=False))
    assert isinstance(optimizer, Sparsified)
    assert optimizer.selection == TENTH
    assert optimizer.state_segments == ("m", "v")
    with_residual = optim.build(replace(chosen("sgd"), sparsify="threshold:2"))
    assert with_residual.state_segments == (RESIDUAL,)
