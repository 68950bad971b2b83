"""The sLSTM cell of every twin and kind of kernels is the recorded and the float64 cell."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.models.ops.native.adapter_mlx import OPS as NATIVE_MLX
from mlxhog.models.ops.native.adapter_torch import OPS as NATIVE_TORCH
from mlxhog.models.ops.reference.recurrences_numpy import slstm_cell
from tests.models.slstm import (
    CASES,
    INPUTS,
    STATE,
    slstm_case,
    slstm_inputs,
    slstm_state,
    wide,
)
from tests.models.twins import TWINS, Twin
from tests.pairs import each_of, in_pairs
from tests.tolerances import FINITE_DIFFERENCE, FLOAT64, SLSTM_F32, SLSTM_GRADIENT_F32, assert_close

CELLS = TWINS | {
    "torch-metal-emulated": Twin("torch", "metal-emulated"),
    "mlx-metal-emulated": Twin("mlx", "metal-emulated"),
}
all_twins = each_of("twin", CELLS.values(), ids=CELLS)
all_cases = each_of("name", CASES)
SHAPES = {
    "several heads": (3, 13, 2, 8),
    "one unit": (2, 5, 1, 1),
    "one position": (2, 1, 3, 5),
    "odd width": (1, 7, 1, 45),
    "many sequences": (17, 4, 2, 3),
}
OF_STATE = tuple(f"{letter}0" for letter in STATE)
NAMES = (*INPUTS, *OF_STATE)


def starts_of(*documents, S):
    """(B, S) uint8: 1 at the first positions given for each sequence."""
    starts = np.zeros((len(documents), S), np.uint8)
    for row, positions in zip(starts, documents, strict=True):
        row[positions] = 1
    return starts


@all_cases
def test_the_float64_reference_reproduces_the_recorded_states_and_gradients(name):
    case = slstm_case(name)
    state = [x.astype(np.float64) for x in case.state]
    states, backward = slstm_cell(*wide(case.inputs).values(), state=state)
    for letter, actual, recorded in zip(STATE, states, case.states, strict=True):
        assert_close(actual, recorded, FLOAT64, label=letter)
    grads = dict(zip(NAMES, backward(case.h_weight.astype(np.float64)), strict=True))
    for letter, recorded in case.grads.items():
        assert_close(grads[letter], recorded, FLOAT64, label=letter)
    for letter, recorded in zip(OF_STATE, case.d_state or (), strict=False):
        assert_close(grads[letter], recorded, FLOAT64, label=letter)


@each_of("packed", [False, True], ids=["one document", "packed"])
def test_the_float64_gradient_is_the_slope_of_outputs_and_last_states(packed):
    B, S, NH, DH = 2, 5, 2, 3
    values = wide(slstm_inputs(B, S, NH, DH))
    values |= dict(zip(OF_STATE, slstm_state(B, NH, DH), strict=True))
    starts = starts_of([2], [0, 1, 4], S=S) if packed else None
    rng = np.random.default_rng(1)
    dh, d_last = rng.normal(size=(B, S, NH, DH)), rng.normal(size=(4, B, NH, DH))

    def run(x):
        state = [np.asarray(x[name], np.float64) for name in OF_STATE]
        return slstm_cell(*(x[name] for name in INPUTS), state=state, starts=starts)

    def loss(x):
        states, _ = run(x)
        last = np.stack(states)[:, :, -1]
        return float((states[0] * dh).sum() + (last * d_last).sum())

    grads = dict(zip(NAMES, run(values)[1](dh, d_last), strict=True))
    step = 1e-6
    for name, value in values.items():
        direction = rng.normal(size=value.shape)
        up, down = (loss(values | {name: value + sign * step * direction}) for sign in (1, -1))
        slope = (grads[name] * direction).sum()
        assert_close(slope, (up - down) / (2 * step), FINITE_DIFFERENCE, label=name)


@all_twins
@all_cases
def test_the_output_and_the_last_state_equal_the_recorded_ones(twin, name):
    case = slstm_case(name)
    h, last = twin.op("slstm_cell", *case.inputs.values(), state=case.state)
    assert_close(h, case.states[0], SLSTM_F32)
    for letter, actual, recorded in zip(STATE, last, case.states, strict=True):
        assert_close(actual, recorded[:, -1], SLSTM_F32, label=letter)


@pytest.mark.slow
@all_twins
@all_cases
def test_one_position_at_a_time_passes_through_every_recorded_state(twin, name):
    case = slstm_case(name)
    state = case.state
    for t in range(case.states[0].shape[1]):
        gates = [case.inputs[gate][:, t : t + 1] for gate in "ifzo"]
        h, state = twin.op("slstm_cell", *gates, case.inputs["R"], case.inputs["b"], state=state)
        assert_close(h[:, 0], state[0], SLSTM_F32)
        for letter, actual, recorded in zip(STATE, state, case.states, strict=True):
            assert_close(actual, recorded[:, t], SLSTM_F32, label=f"{letter} at {t}")


@all_twins
@all_cases
def test_every_gradient_equals_the_recorded_one(twin, name):
    case = slstm_case(name)
    weight = twin.array(case.h_weight)

    def weighted_sum(ops, p):
        state = [p[letter] for letter in OF_STATE]
        h, _ = ops.slstm_cell(*(p[letter] for letter in INPUTS), state=state)
        return (h * weight).sum()

    inputs = case.inputs | dict(zip(OF_STATE, case.state, strict=True))
    grads = twin.op_grads(weighted_sum, inputs)
    for letter, recorded in case.grads.items():
        assert_close(grads[letter], recorded, SLSTM_GRADIENT_F32, label=letter)
    for letter, recorded in zip(OF_STATE, case.d_state or (), strict=False):
        assert_close(grads[letter], recorded, SLSTM_GRADIENT_F32, label=letter)


@pytest.mark.slow
@in_pairs(
    twin=CELLS,
    shape=SHAPES,
    from_zeros={"from zeros": True, "from a state": False},
    packed={"one document": False, "packed": True},
)
def test_output_states_and_all_gradients_are_those_of_the_float64_reference(
    twin, shape, from_zeros, packed
):
    B, S, NH, DH = shape
    inputs, state = slstm_inputs(B, S, NH, DH), slstm_state(B, NH, DH)
    if from_zeros:
        state = tuple(np.zeros_like(x) for x in state)
    rng = np.random.default_rng(2)
    starts = (rng.random((B, S)) < 0.3).astype(np.uint8) if packed else None
    dh, d_last = rng.normal(size=(B, S, NH, DH)), rng.normal(size=(4, B, NH, DH))
    wide_state = [x.astype(np.float64) for x in state]
    states, backward = slstm_cell(*wide(inputs).values(), state=wide_state, starts=starts)
    h, last = twin.op("slstm_cell", *inputs.values(), state=state, starts=starts)
    assert_close(h, states[0], SLSTM_F32)
    for letter, actual, expected in zip(STATE, last, states, strict=True):
        assert_close(actual, expected[:, -1], SLSTM_F32, label=letter)

    weights = [twin.array(x) for x in (dh, *d_last)]
    given_starts = None if starts is None else twin.array(starts)

    def weighted_sum(ops, p):
        state = [p[letter] for letter in OF_STATE]
        h, last = ops.slstm_cell(
            *(p[letter] for letter in INPUTS), state=state, starts=given_starts
        )
        results = (h, *last)
        return sum((x * w).sum() for x, w in zip(results, weights, strict=True))

    grads = twin.op_grads(weighted_sum, inputs | dict(zip(OF_STATE, state, strict=True)))
    for letter, expected in zip(NAMES, backward(dh, d_last), strict=True):
        assert_close(grads[letter], expected, SLSTM_GRADIENT_F32, label=letter)


@all_twins
def test_documents_packed_into_one_sequence_compute_what_they_compute_alone(twin):
    S, NH, DH = 11, 2, 4
    inputs = slstm_inputs(1, S, NH, DH)
    whole, last = twin.op("slstm_cell", *inputs.values(), starts=starts_of([0, 3, 4], S=S))
    for document in (slice(0, 3), slice(3, 4), slice(4, S)):
        gates = [inputs[gate][:, document] for gate in "ifzo"]
        alone, state = twin.op("slstm_cell", *gates, inputs["R"], inputs["b"])
        assert_close(whole[:, document], alone, SLSTM_F32)
    for actual, expected in zip(last, state, strict=True):
        assert_close(actual, expected, SLSTM_F32)


@all_twins
def test_a_document_that_starts_first_forgets_the_given_state(twin):
    inputs, starts = slstm_inputs(2, 5, 1, 3), np.array([[True] + 4 * [False]] * 2)
    fresh, _ = twin.op("slstm_cell", *inputs.values())
    h, _ = twin.op("slstm_cell", *inputs.values(), state=slstm_state(2, 1, 3), starts=starts)
    np.testing.assert_array_equal(h, fresh)


@all_twins
def test_a_sequence_beside_others_computes_what_it_computes_alone(twin):
    inputs, state = slstm_inputs(2, 6, 2, 3), slstm_state(2, 2, 3)
    for part in state:
        part[0] = 0  # only one of the two begins at its first step
    both, _ = twin.op("slstm_cell", *inputs.values(), state=state)
    for row in range(2):
        gates = [inputs[gate][row : row + 1] for gate in "ifzo"]
        own = tuple(part[row : row + 1] for part in state)
        alone, _ = twin.op("slstm_cell", *gates, inputs["R"], inputs["b"], state=own)
        assert_close(both[row : row + 1], alone, SLSTM_F32)


@all_twins
def test_gradients_flow_through_the_state_of_one_call_into_the_next(twin):
    inputs = slstm_inputs(2, 12, 2, 5)
    weight = twin.array(np.random.default_rng(3).normal(size=(2, 5, 2, 5)))

    def in_two_calls(ops, p):
        R, b = p["R"], p["b"]
        _, state = ops.slstm_cell(*(p[gate][:, :7] for gate in "ifzo"), R, b)
        h, _ = ops.slstm_cell(*(p[gate][:, 7:] for gate in "ifzo"), R, b, state=state)
        return (h * weight).sum()

    def in_one(ops, p):
        return (ops.slstm_cell(*p.values())[0][:, 7:] * weight).sum()

    grads, expected = twin.op_grads(in_two_calls, inputs), twin.op_grads(in_one, inputs)
    for name in INPUTS:
        assert_close(grads[name], expected[name], SLSTM_GRADIENT_F32, label=name)


@all_twins
def test_a_gradient_through_the_last_state_alone_needs_no_output(twin):
    inputs = slstm_inputs(1, 4, 1, 3)

    def scalar(ops, p):
        _, (_, c, _, _) = ops.slstm_cell(*p.values())
        return (c**3).sum()

    states, backward = slstm_cell(*wide(inputs).values())
    d_last = [np.zeros((1, 1, 3)) for _ in range(4)]
    d_last[1] = 3 * states[1][:, -1] ** 2
    grads = twin.op_grads(scalar, inputs)
    for name, expected in zip(INPUTS, backward(np.zeros_like(states[0]), d_last), strict=False):
        assert_close(grads[name], expected, SLSTM_GRADIENT_F32, label=name)


def test_the_native_cell_takes_inputs_that_are_not_contiguous():
    inputs = slstm_inputs(2, 5, 2, 3)
    i, f, z, o, R, b = (torch.tensor(x) for x in inputs.values())
    strided = [torch.stack([x, x], -1)[..., 0].requires_grad_() for x in (i, f, z, o)]
    assert not strided[0].is_contiguous()
    h, _ = NATIVE_TORCH.slstm_cell(*strided, R, b)
    expected, _ = NATIVE_TORCH.slstm_cell(i, f, z, o, R, b)
    np.testing.assert_array_equal(h.detach(), expected)
    h.sum().backward()
    assert all(x.grad is not None for x in strided)


def test_the_native_cell_refuses_other_types_than_float32():
    inputs = wide(slstm_inputs(1, 2, 1, 2))
    with pytest.raises(TypeError):
        NATIVE_TORCH.slstm_cell(*(torch.tensor(x) for x in inputs.values()))
    with pytest.raises(TypeError):
        NATIVE_MLX.slstm_cell(*(mx.array(x).astype(mx.float16) for x in inputs.values()))
