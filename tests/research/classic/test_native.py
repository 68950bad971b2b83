"""The native loops of all problems: recorded steps, one worker, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlxhog import _native
from tests.pairs import each_of
from tests.research.classic import native
from tests.research.classic.native import KINDS, WIDTH, Sparse, alone, orders
from tests.research.classic.pair_problems import Factors, Tangle, table
from tests.tolerances import CLASSIC_STEP_F32, SIMPLEX_F32, assert_close

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/hogwild/single_steps.json").read_text())
FIRST = np.zeros(1, np.int32)


@each_of("name", ["svm", "svm_violating"])
def test_one_step_of_the_svm_is_the_recorded_one(name):
    case = GOLDEN["svm"] | GOLDEN[name]
    x = np.zeros((1, WIDTH), np.float32)
    x[0, :5] = case["w"]
    shrink = 2 * case["lam"] / np.array(case["deg"])
    problem = native.linear(x, [0, 3], case["idx"], case["x"], [case["y"]], shrink)
    problem.run(alone("private"), FIRST, case["gamma"])
    assert np.abs(x[0, :5] - case["w_new"]).max() <= CLASSIC_STEP_F32.atol
    assert not x[0, 5:].any()


def test_one_step_of_completion_is_the_recorded_one():
    case = GOLDEN["mc"]
    left, right = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    left[0, :2], right[0, :2] = case["L"], case["R"]
    shrink = [np.array([case["mu"] / case[degree]], np.float32) for degree in ("deg_u", "deg_v")]
    problem = _native.CompletionProblem(left, right, table([(0, 0, case["Z"])]), *shrink)
    assert_close(problem.squared_error(), case["err"] ** 2, CLASSIC_STEP_F32)
    problem.run(alone("private"), FIRST, case["gamma"])
    for rows, after in ((left, case["L_new"]), (right, case["R_new"])):
        assert_close(rows[0, :2], after, CLASSIC_STEP_F32)
        assert not rows[0, 2:].any()


def test_one_step_of_a_cut_is_the_recorded_one():
    case = GOLDEN["cut"]
    x = np.array([case["xu"], case["xv"]], np.float32)
    problem = _native.CutProblem(x, table([(0, 1, case["w"])]), np.zeros(2, np.uint8))
    assert_close(problem.objective(x), case["obj_before"], CLASSIC_STEP_F32)
    problem.run(alone("private"), FIRST, case["gamma"])
    assert_close(x, [case["xu_new"], case["xv_new"]], CLASSIC_STEP_F32)


N = 3000


def linear(loss):
    data = Sparse.random(n=N, targets=loss == "squares")
    return [data.zeros()], lambda x: data.problem(x, loss=loss)


def dense(classes):
    rng = np.random.default_rng(3)
    features = rng.standard_normal((N, 70), dtype=np.float32)
    labels = rng.integers(classes, size=N) if classes > 1 else np.sign(rng.standard_normal(N))

    def problem(x):
        arrays = features, labels.astype(np.float32)
        return _native.DenseLinearProblem(x, *arrays, classes=classes)

    return [np.zeros((classes * 3, 32), np.float32)], problem


def completion(width):
    data = Factors.random(n=N, width=width)
    return [data.left, data.right], data.problem


def cut(labels):
    data = Tangle.random(n=N, vertices=60, labels=labels)
    return [data.x], data.problem


PROBLEMS = {
    **{f"linear {loss}": (linear, loss) for loss in ("hinge", "logistic", "squares")},
    **{f"dense {classes}": (dense, classes) for classes in (1, 3)},
    **{f"completion {width}": (completion, width) for width in (16, 48)},
    **{f"cut {labels}": (cut, labels) for labels in (2, 3, 8)},
}


@pytest.mark.slow
@each_of("batch", [1, 3])
@each_of("name", PROBLEMS)
def test_every_strategy_with_one_worker_gives_the_bits_of_serial(name, batch):
    make, how = PROBLEMS[name]
    values, problem_over = make(how)
    order = orders(N, 1)[0]

    def after(kind, **options):
        params = [rows.copy() for rows in values]
        strategy = alone(kind, **options)
        assert problem_over(*params).run(strategy, order, 0.05, batch) == N
        return params

    serial = after("private")
    assert max(np.abs(a - b).max() for a, b in zip(serial, values, strict=True)) > 0.01
    kinds = KINDS[1:] if make is linear else [kind for kind in KINDS[1:] if kind != "hot_cold"]
    for kind in kinds:
        for a, b in zip(after(kind, hot=50, period=7), serial, strict=True):
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=kind)


def test_a_row_that_two_writers_mixed_is_projected_when_it_is_read():
    # Row 0 is off the simplex; its projection equals row 1, so the edge pulls nothing.
    x = np.array([[0.9, 0.7, 0.4], [0.0, 0.0, 0.0]], np.float32)
    x[1] = projected(x[0])
    problem = _native.CutProblem(x, table([(0, 1, 1.0)]), np.array([1, 0], np.uint8))
    before = x.copy()
    problem.run(alone("racy"), FIRST, 0.3)
    assert_close(x, before, CLASSIC_STEP_F32)


ROWS = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-2, 2, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)


def projected(v):
    rows = np.array(v, np.float32).reshape(1, -1)
    _native.project_onto_simplex(rows)
    return rows[0]


@each_of("example", GOLDEN["cut"]["proj_examples"], ids=lambda e: str(e["v"]))
def test_projections_are_the_recorded_ones(example):
    assert_close(projected(example["v"]), example["p"], CLASSIC_STEP_F32)


@given(ROWS)
def test_the_projection_is_the_nearest_point_of_the_simplex(v):
    p = projected(v).astype(np.float64)
    assert (p >= 0).all()
    assert_close(p.sum(), 1.0, SIMPLEX_F32)
    # The vertices span the simplex, so p is nearest exactly if (v - p).(e_i - p) <= 0 for all i.
    away = v - p
    assert (away - away @ p <= 1e-5 * max(1.0, np.abs(v).sum())).all()
    assert_close(projected(p), p, SIMPLEX_F32)


def sparse(indptr, *indices, n_values=2):
    x = np.zeros((1, WIDTH), np.float32)
    return native.linear(x, indptr, indices, np.ones(n_values), np.ones(2))


def rating(*pair, width=16):
    data = Factors.random()
    left, right = data.left[:, :width].copy(), data.right[:, :width].copy()
    shrink = data.shrink_users, data.shrink_items
    return _native.CompletionProblem(left, right, table([(*pair, 1.0)]), *shrink)


@each_of(
    ("make", "message"),
    [
        (lambda: sparse([0, 2, 2], 2, 1), "row 0: indices have to ascend, got 2 before 1"),
        (lambda: sparse([0, 2, 2], 1, 16), "row 0 names coordinate 16 of 16"),
        (lambda: sparse([0, 2, 2], -1, 3), "row 0 names coordinate -1 of 16"),
        (lambda: sparse([0, 3, 2], 1, 2), "indptr descends at row 1|row 0"),
        (lambda: sparse([0, 2, 2], 1, 2, n_values=3), r"values has shape \(3,\)"),
        (lambda: rating(20, 0), "example 0 names row 20 of 20"),
        (lambda: rating(-1, 0), "example 0 names row -1 of 20"),
        (lambda: rating(0, 0, width=10), "rows have 10 floats; wanted a multiple of 16"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_a_loop_reads_them(make, message):
    sparse([0, 2, 2], 1, 2)
    with pytest.raises(ValueError, match=message):
        make()
