"""The chunkwise mLSTM kernel equals the float64 recurrence for any chunks, sizes and gates.

The recurrence is differentiated step by step: it shares no formula with the kernel.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxhog._native import ops
from tests.models.operators import run_mlstm
from tests.models.twins import EXACT
from tests.pairs import each_of
from tests.tolerances import CELL_EXTREME_F32, CELL_F32, GRADIENT_ANY_F32, STATE_F32, assert_close

Array = NDArray[Any]
EPS = 1e-6
NAMES = ("q", "k", "v", "i", "f", "C", "n", "m")


@dataclass(frozen=True)
class Cell:
    """Inputs q k v i f, initial state C n m, gradients dh dC dn dm of the results."""

    inputs: tuple[Array, ...]
    state: tuple[Array, ...]
    d_results: tuple[Array, ...]


def sample(B, S, NH, DK, DV, *, seed=0, zero_state=False):
    r = np.random.default_rng(seed)

    def draw(*shape):
        return r.standard_normal(shape).astype(np.float32)

    q, k, v = draw(B, S, NH, DK), draw(B, S, NH, DK), draw(B, S, NH, DV)
    i, f = draw(B, S, NH), 3 + draw(B, S, NH)
    state = (draw(B, NH, DK, DV), draw(B, NH, DK), draw(B, NH))
    if zero_state:
        state = tuple(np.zeros_like(x) for x in state)
    d_last = (draw(B, NH, DK, DV), draw(B, NH, DK), draw(B, NH))
    return Cell((q, k, v, i, f), state, (draw(B, S, NH, DV), *d_last))


def run(cell, chunk, threads=1, stride=1):
    """Results h C n m and gradients by name, from the native kernels."""
    q, _, v, i, _ = cell.inputs
    B, S, NH, DK = q.shape
    NC = -(-S // chunk)
    C = np.full((B, NH, -(-NC // stride) + 1, DK, v.shape[-1]), np.nan, np.float32)
    n, m = (
        np.full((B, NH, NC + 1, DK), np.nan, np.float32),
        np.full((B, NH, NC + 1), np.nan, np.float32),
    )
    C[:, :, 0], n[:, :, 0], m[:, :, 0] = cell.state
    h, den = np.full_like(v, np.nan), np.full_like(i, np.nan)
    how = {"chunk": chunk, "stride": stride, "eps": EPS, "threads": threads}
    ops.mlstm(*cell.inputs, h, den, C, n, m, **how)
    grads = [np.full_like(x, np.nan) for x in cell.inputs]
    dh, *d_state = (x.copy() for x in cell.d_results)
    ops.mlstm_grad(*cell.inputs, h, den, C, n, m, dh, *grads, *d_state, **how)
    results = {"h": h, "C": C[:, :, -1], "n": n[:, :, -1], "m": m[:, :, -1]}
    return results, dict(zip(NAMES, (*grads, *d_state), strict=True))


def wanted(cell):
    inputs = dict(zip((*"qkvif", "C0", "n0", "m0"), (*cell.inputs, *cell.state), strict=True))
    how = {"chunk_size": 1, "eps": EPS}
    results, grads = EXACT.run(run_mlstm, inputs, how, cell.d_results)
    return dict(zip("hCnm", results, strict=True)), dict(zip(NAMES, grads.values(), strict=True))


def assert_same(actual, expected, tolerance):
    for name in expected:
        assert_close(actual[name], expected[name], tolerance, label=name)


@each_of(
    ("B", "S", "NH", "DK", "DV", "chunk"),
    [
        (1, 1, 1, 1, 1, 64),
        (2, 1, 3, 5, 7, 16),
        (1, 17, 2, 16, 32, 16),
        (2, 64, 2, 16, 32, 64),
        (1, 70, 1, 33, 20, 32),
        (1, 100, 2, 8, 48, 64),
        (3, 13, 1, 4, 4, 1),
        (1, 130, 1, 64, 128, 128),
    ],
)
def test_results_and_gradients_equal_the_recurrence(B, S, NH, DK, DV, chunk):
    cell = sample(B, S, NH, DK, DV)
    results, grads = run(cell, chunk)
    expected, expected_grads = wanted(cell)
    assert_close(results["h"], expected["h"], CELL_EXTREME_F32, label="h")
    for name in "Cnm":
        assert_close(results[name], expected[name], STATE_F32, label=name)
    assert_same(grads, expected_grads, GRADIENT_ANY_F32)


@each_of(
    "gates",
    [
        {"i": -10.0},  # a fresh model
        {"f": -30.0},
        {"f": 30.0},
        {"i": 15.0, "f": -15.0},
        {"i": -15.0, "f": 15.0},
        {"i": -10.0, "f": -200.0},
    ],
    ids=str,
)
@each_of("zero_state", [True, False])
def test_extreme_gates_stay_exact(gates, zero_state):
    cell = sample(2, 75, 2, 16, 32, zero_state=zero_state)
    for name, value in gates.items():
        cell.inputs["qkvif".index(name)][...] = value
    results, grads = run(cell, 32)
    expected, expected_grads = wanted(cell)
    assert_close(results["h"], expected["h"], CELL_F32, label="h")
    assert_same(grads, expected_grads, GRADIENT_ANY_F32)


def test_very_negative_forget_gates_among_ordinary_ones_lose_no_digits():
    cell = sample(1, 256, 2, 16, 32)
    cell.inputs[4][:, ::7] = -500.0
    results, grads = run(cell, 64)
    expected, expected_grads = wanted(cell)
    assert_close(results["h"], expected["h"], CELL_EXTREME_F32, label="h")
    assert_same(grads, expected_grads, GRADIENT_ANY_F32)


def test_a_first_step_without_a_past_has_no_forget_gradient_but_from_eps():
    cell = sample(1, 20, 2, 16, 32, zero_state=True)
    cell.inputs[3][:, 0] = 1.0  # the stabiliser, by which eps counts, begins there
    _, grads = run(cell, 16)
    assert (grads["f"][:, 0] == 0).all()


def test_the_thread_count_does_not_change_a_bit():
    cell = sample(2, 70, 3, 16, 32)
    one, two = run(cell, 32, threads=1), run(cell, 32, threads=4)
    for a, b in zip(one, two, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@each_of("S", [1, 16, 70, 96])
@each_of("stride", [2, 3, 5, 100])
def test_how_many_chunk_states_are_kept_does_not_change_a_bit(S, stride):
    cell = sample(2, S, 2, 16, 32)
    for kept, all_kept in zip(run(cell, 16, stride=stride), run(cell, 16), strict=True):
        for name in kept:
            np.testing.assert_array_equal(kept[name], all_kept[name])


@each_of(("DK", "chunk"), [(8, 64), (64, 64), (100, 64), (512, 64), (64, 1)])
def test_a_training_step_keeps_no_more_of_the_states_than_of_the_values(DK, chunk):
    S, first_and_last = 64 * 512, 2
    stride = ops.mlstm_stride(DK=DK, chunk=chunk)
    chunks = -(-S // chunk)
    matrices = -(-chunks // stride) + 1
    assert (matrices - first_and_last) * DK <= S


def test_a_sequence_in_two_parts_continues_from_the_state():
    cell = sample(2, 50, 2, 8, 12)
    whole, _ = run(cell, 16)
    first = Cell(tuple(x[:, :23].copy() for x in cell.inputs), cell.state, tuple(cell.d_results))
    first = Cell(first.inputs, first.state, (first.inputs[2], *cell.d_results[1:]))
    a, _ = run(first, 16)
    rest = tuple(x[:, 23:].copy() for x in cell.inputs)
    b, _ = run(Cell(rest, (a["C"], a["n"], a["m"]), (rest[2], *cell.d_results[1:])), 16)
    assert_close(np.concatenate([a["h"], b["h"]], 1), whole["h"], CELL_EXTREME_F32)


@pytest.mark.slow
def test_outputs_too_large_for_malloc_to_keep_are_computed_like_any_others():
    large = sample(1, 17 * 1024, 1, 2, 512)
    assert large.inputs[2].nbytes > 32 << 20
    results, _ = run(large, 64)
    half = 17 * 512
    first = tuple(np.ascontiguousarray(x[:, :half]) for x in large.inputs)
    rest = tuple(np.ascontiguousarray(x[:, half:]) for x in large.inputs)
    a, _ = run(Cell(first, large.state, (first[2], *large.d_results[1:])), 64)
    b, _ = run(Cell(rest, (a["C"], a["n"], a["m"]), (rest[2], *large.d_results[1:])), 64)
    np.testing.assert_array_equal(results["h"], np.concatenate([a["h"], b["h"]], 1))
    np.testing.assert_array_equal(results["C"], b["C"])


def test_nan_in_any_input_reaches_the_output():
    for j, name in enumerate("qkvif"):
        cell = sample(1, 20, 1, 4, 4)
        cell.inputs[j][0, 0] = np.nan
        results, _ = run(cell, 16)
        assert np.isnan(results["h"]).any(), name


def test_arrays_of_a_wrong_size_are_refused_by_name():
    cell = sample(1, 4, 1, 4, 4)
    q, k, v, i, f = cell.inputs
    state = [np.zeros(shape, np.float32) for shape in [(1, 1, 2, 4, 4), (1, 1, 2, 4), (1, 1, 2)]]
    how = {"chunk": 4, "stride": 1, "eps": EPS, "threads": 1}
    with pytest.raises(ValueError, match=r"den has shape .*; the other .* = \(1, 4, 1\)"):
        ops.mlstm(
            q,
            k,
            v,
            i,
            f,
            np.empty_like(v),
            np.empty(3, np.float32),
            *state,
            **how,
        )
    out = (np.empty_like(v), np.empty_like(i), *state)
    for name in ("chunk", "stride"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            ops.mlstm(q, k, v, i, f, *out, **(how | {name: 0}))
    with pytest.raises(ValueError, match=r"C has shape \(1, 1, 2, 4, 4\); .* = \(1, 1, 3, 4, 4\)"):
        ops.mlstm(q, k, v, i, f, *out, **(how | {"chunk": 1, "stride": 2}))
    with pytest.raises(TypeError):
        ops.mlstm(q.astype(np.float64), k, v, i, f, *out, **how)
