"""The native sLSTM kernel equals the float64 cell for any sizes, threads and gates."""

from dataclasses import dataclass

import numpy as np
import pytest

from mlxhog._native import ops
from tests.metal.sample import Array, unwritten
from tests.models.golden import SLSTM as INPUTS
from tests.models.operators import run_slstm
from tests.models.sample import slstm_inputs, slstm_state
from tests.models.twins import EXACT
from tests.pairs import each_of
from tests.tolerances import SLSTM_F32, SLSTM_GRADIENT_F32, assert_close

GATES, STATE = INPUTS[:4], "hcnm"


@dataclass(frozen=True)
class Cell:
    """Inputs i f z o R b, initial state h c n m, starts, gradients dh and of the last state."""

    inputs: dict[str, Array]
    state: tuple[Array, ...]
    starts: Array | None
    dh: Array
    d_last: Array


def sample(B, S, NH, DH, *, zero_state=False, packed=False):
    rng = np.random.default_rng(0)
    state = slstm_state(B, NH, DH)
    if zero_state:
        state = tuple(np.zeros_like(x) for x in state)
    return Cell(
        inputs=slstm_inputs(B, S, NH, DH),
        state=state,
        starts=(rng.random((B, S)) < 0.2).astype(np.uint8) if packed else None,
        dh=rng.standard_normal((B, S, NH, DH), np.float32),
        d_last=rng.standard_normal((4, B, NH, DH), np.float32),
    )


def run(cell, threads=1):
    """The output y, the last state and every gradient by name, from the native kernels."""
    B, S, NH, DH = cell.dh.shape
    inputs, R = cell.inputs.values(), cell.inputs["R"]
    y, tape = unwritten(B, S, NH, DH), unwritten(B, S, NH, ops.SLSTM_TAPE, DH)
    last = [x.copy() for x in cell.state]
    ops.slstm(*inputs, cell.starts, y, tape, *last, threads=threads)
    grads = [unwritten(*x.shape) for x in inputs]
    d_state = [x.copy() for x in cell.d_last]
    before = cell.state[:3]
    ops.slstm_grad(R, cell.starts, *before, y, tape, cell.dh, *grads, *d_state, threads=threads)
    return {
        "y": y,
        **dict(zip(STATE, last, strict=True)),
        **{f"d{name}": grad for name, grad in zip(INPUTS, grads, strict=True)},
        **{f"d{name}0": grad for name, grad in zip(STATE, d_state, strict=True)},
    }


def wanted(cell):
    inputs = cell.inputs | {f"{name}0": x for name, x in zip(STATE, cell.state, strict=True)}
    weights = [cell.dh, *cell.d_last]
    (y, *last), grads = EXACT.run(run_slstm, inputs, {"starts": cell.starts}, weights)
    named = {f"d{name}": grad for name, grad in grads.items()}
    return {"y": y, **dict(zip(STATE, last, strict=True)), **named}


def assert_is_the_cell(cell):
    actual = run(cell)
    for name, value in wanted(cell).items():
        tolerance = SLSTM_GRADIENT_F32 if name.startswith("d") else SLSTM_F32
        assert_close(actual[name], value, tolerance, label=name)


@each_of("packed", [False, True], ids=["one document", "packed"])
@each_of(
    ("B", "S", "NH", "DH"),
    [(1, 1, 1, 1), (2, 1, 3, 5), (3, 20, 2, 8), (1, 9, 1, 33), (15, 6, 1, 16), (29, 3, 2, 4)],
)
def test_results_and_gradients_equal_the_float64_cell(B, S, NH, DH, packed):
    assert_is_the_cell(sample(B, S, NH, DH, packed=packed))


@each_of("zero_state", [True, False])
@each_of(
    "gates",
    [
        {"i": -30.0},
        {"f": -30.0},
        {"f": 30.0},
        {"i": 15.0, "f": -30.0},
        {"i": -15.0, "f": 15.0},
        {"i": -10.0, "f": -200.0},
        {"z": 30.0, "o": -30.0},
        {"z": -30.0, "o": 30.0},
    ],
    ids=str,
)
def test_extreme_gates_stay_exact(gates, zero_state):
    cell = sample(2, 30, 2, 6, zero_state=zero_state)
    for name, value in gates.items():
        cell.inputs[name][...] += np.float32(value)
    assert_is_the_cell(cell)


@each_of("packed", [False, True], ids=["one document", "packed"])
@each_of("threads", [2, 3, 16])
def test_any_number_of_threads_gives_the_same_bits(threads, packed):
    for sizes in ((16, 9, 2, 24), (5, 6, 1, 5)):
        cell = sample(*sizes, packed=packed)
        one, several = run(cell), run(cell, threads)
        for name, value in one.items():
            np.testing.assert_array_equal(several[name], value, err_msg=name)


def test_the_output_does_not_depend_on_whether_the_tape_is_kept():
    cell = sample(3, 7, 2, 10)
    y, state = unwritten(*cell.dh.shape), [x.copy() for x in cell.state]
    ops.slstm(*cell.inputs.values(), None, y, None, *state, threads=1)
    actual = run(cell)
    for name, value in {"y": y, **dict(zip(STATE, state, strict=True))}.items():
        np.testing.assert_array_equal(value, actual[name])


@each_of("zero_state", [True, False])
@each_of("name", INPUTS)
def test_nan_in_any_input_reaches_the_output(name, zero_state):
    cell = sample(1, 6, 1, 4, zero_state=zero_state)
    cell.inputs[name].reshape(-1)[0] = np.nan
    assert np.isnan(run(cell)["y"]).any()


def test_arrays_of_a_wrong_size_are_refused_by_name():
    cell = sample(2, 3, 1, 4)
    inputs, state = list(cell.inputs.values()), [x.copy() for x in cell.state]
    y = unwritten(*cell.dh.shape)

    def call(*arrays, starts=None, out=y, tape=None):
        ops.slstm(*arrays, starts, out, tape, *state, threads=1)

    with pytest.raises(ValueError, match=r"R has shape \(15, 4\); .*, 4\*DH, .* = \(1, 16, 4\)"):
        call(*inputs[:4], inputs[4].reshape(16, 4)[:15].copy(), inputs[5])
    with pytest.raises(ValueError, match=r"starts has shape \(5,\); .* = \(2, 3\)"):
        call(*inputs, starts=np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match=r"tape has shape \(2, 3, 1, 4\); .* = \(2, 3, 1, 7, 4\)"):
        call(*inputs, tape=y)
    with pytest.raises(ValueError, match="S is 0, expected at least 1"):
        call(*(x[:, :0] for x in inputs[:4]), *inputs[4:], out=y[:, :0])
    with pytest.raises(TypeError):
        call(*inputs, out=y.astype(np.float64))
