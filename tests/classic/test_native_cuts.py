"""Graph cuts in C++: what one worker computes, to the bit."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlxhog import _native
from tests.classic.native import KINDS, alone, orders
from tests.classic.pair_problems import Tangle, in_order, table
from tests.classic.pair_references import cut_epoch, project, project_onto_simplex
from tests.pairs import each_of
from tests.tolerances import CLASSIC_STEP_F32, SIMPLEX_F32, assert_close

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/single_steps.json").read_text())
GAMMA = 0.2
SCHEMES = tuple(kind for kind in KINDS if kind != "hot_cold")


def test_one_step_is_the_recorded_one():
    case = GOLDEN["cut"]
    x = np.array([case["xu"], case["xv"]], np.float32)
    problem = _native.CutProblem(x, table([(0, 1, case["w"])]), np.zeros(2, np.uint8))
    assert_close(problem.objective(x), case["obj_before"], CLASSIC_STEP_F32)
    problem.run(alone("private"), np.zeros(1, np.int32), case["gamma"])
    assert_close(x, [case["xu_new"], case["xv_new"]], CLASSIC_STEP_F32)


@each_of("batch", [1, 3])
@each_of("labels", [2, 3, 8, 40])
def test_one_worker_is_sequential_sgd_bit_for_bit(labels, batch):
    data = Tangle.random(vertices=60, labels=labels)
    actual, expected = data.x.copy(), data.x.copy()
    order = np.concatenate([orders(300, 1)[0], orders(300, 1, seed=1)[0]])
    assert data.problem(actual).run(alone("private"), order, GAMMA, batch) == 600
    cut_epoch(expected, in_order(data.edges, order), data.fixed.astype(bool), GAMMA, batch=batch)
    np.testing.assert_array_equal(actual, expected)
    assert np.abs(actual - data.x).max() > 0.1


@pytest.mark.slow
@each_of("kind", SCHEMES[1:])
@each_of("batch", [1, 3])
@each_of("labels", [2, 3, 8])
def test_every_scheme_with_one_worker_gives_the_bits_of_serial(labels, batch, kind):
    data = Tangle.random(n=3000, vertices=60, labels=labels)
    order = orders(3000, 1)[0]
    serial, actual = data.x.copy(), data.x.copy()
    data.problem(serial).run(alone("private"), order, GAMMA, batch)
    assert data.problem(actual).run(alone(kind), order, GAMMA, batch) == 3000
    np.testing.assert_array_equal(actual, serial)


def test_two_labels_as_one_scalar_are_two_rows_that_mirror_each_other():
    scalar = Tangle.random(labels=2)
    rows = np.concatenate([1 - scalar.x, scalar.x], axis=1)
    double = Tangle(rows, scalar.edges, scalar.fixed)
    order = orders(300, 1)[0]
    scalar.problem(x := scalar.x.copy()).run(alone("private"), order, 0.01)
    double.problem(rows).run(alone("private"), order, 0.01)
    assert_close(rows[:, 1:], x, SIMPLEX_F32)


@each_of("labels", [2, 8])
def test_terminals_stay_where_they_are(labels):
    data = Tangle.random(labels=labels)
    x = data.x.copy()
    data.problem(x).run(alone("private"), orders(300, 1)[0], GAMMA)
    np.testing.assert_array_equal(x[:labels], data.x[:labels])


def test_every_vertex_stays_on_the_simplex():
    data = Tangle.random(labels=8)
    x = data.x.copy()
    data.problem(x).run(alone("private"), orders(300, 1)[0], GAMMA)
    assert (x >= 0).all()
    assert_close(x.sum(axis=1), np.ones(len(x)), SIMPLEX_F32)


def test_a_row_that_two_writers_mixed_is_projected_when_it_is_read():
    # Row 0 is off the simplex; its projection equals row 1, so the edge pulls nothing.
    x = np.array([[0.9, 0.7, 0.4], [0.5666667, 0.3666667, 0.0666667]], np.float32)
    x[1] = project(x[0])
    problem = _native.CutProblem(x, table([(0, 1, 1.0)]), np.array([1, 0], np.uint8))
    before = x.copy()
    problem.run(alone("racy"), np.zeros(1, np.int32), 0.3)
    assert_close(x, before, CLASSIC_STEP_F32)


@each_of(
    ("edges", "message"),
    [
        ([(30, 0, 1.0)], "example 0 names row 30 of 30"),
        ([(0, 1, 1.0), (1, -2, 1.0)], "example 1 names row -2 of 30"),
    ],
)
def test_edges_between_vertices_that_do_not_exist_are_refused(edges, message):
    data = Tangle.random()
    with pytest.raises(ValueError, match=message):
        Tangle(data.x, edges, data.fixed).problem(data.x)


def test_too_few_flags_are_refused():
    data = Tangle.random()
    with pytest.raises(ValueError, match="fixed has 29 entries; wanted 30"):
        _native.CutProblem(data.x, table(data.edges), data.fixed[1:])


# -- the projection onto the simplex ---------------------------------------------------------------


GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/single_steps.json").read_text())

ROWS = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-2, 2, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)


def native(v):
    rows = v.reshape(1, -1).copy()
    _native.project_onto_simplex(rows)
    return rows[0]


@each_of("example", GOLDEN["cut"]["proj_examples"], ids=lambda e: str(e["v"]))
def test_projections_are_the_recorded_ones(example):
    assert_close(native(np.array(example["v"], np.float32)), example["p"], CLASSIC_STEP_F32)


@given(ROWS)
def test_the_native_projection_has_the_bits_of_numpy(v):
    np.testing.assert_array_equal(native(v), project_onto_simplex(v))


@given(ROWS)
def test_a_projected_row_lies_on_the_simplex(v):
    p = native(v)
    assert (p >= 0).all()
    assert_close(p.sum(dtype=np.float64), 1.0, SIMPLEX_F32)


@given(ROWS)
def test_the_projection_is_the_nearest_point(v):
    # The vertices span the simplex, so p is nearest exactly if (v - p).(e_i - p) <= 0 for all i.
    p = project_onto_simplex(v.astype(np.float64))
    away = v - p
    assert (away - away @ p <= 1e-9 * max(1.0, np.abs(v).sum())).all()
    assert_close(native(v), p, SIMPLEX_F32)


@given(ROWS)
def test_projecting_twice_is_projecting_once(v):
    assert_close(native(native(v)), native(v), SIMPLEX_F32)


@given(ROWS)
def test_the_projection_keeps_the_order_of_the_entries(v):
    p = native(v)
    assert (np.diff(p[np.argsort(v, kind="stable")]) >= 0).all()
