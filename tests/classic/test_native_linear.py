"""Sparse and dense linear problems: what one worker computes, to the bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog import _native
from tests.classic.native import KINDS, WIDTH, Sparse, alone, orders, slope_of, sums
from tests.pairs import each_of
from tests.tolerances import CLASSIC_STEP_F32

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/single_steps.json").read_text())
SPARSE_LANES, DENSE_LANES = 4, 32
LOSSES = ("hinge", "logistic", "squares")
GAMMA = 0.37


def same_bits(actual, expected):
    """Equal as numbers: a zero may have either sign."""
    np.testing.assert_array_equal(actual.reshape(-1), expected.reshape(-1))


# -- sparse rows ----------------------------------------------------------------------------------


def sequential(data, order, *, loss, shrink, batch, active_rows):
    """Plain sequential SGD in NumPy float32."""
    x = data.zeros().reshape(-1)
    seen = active = 0
    for i in range(0, len(order), batch):
        examples = order[i : i + batch]
        step = np.float32(GAMMA) / np.float32(len(examples))
        old = x.copy()
        slopes = []
        for e in examples:
            u, z, y = data.row(e)
            slopes.append(slope_of(loss, sums(z * old[u], SPARSE_LANES), y))
        for e, slope in zip(examples, slopes, strict=True):
            u, z, _ = data.row(e)
            seen, active = seen + 1, active + bool(slope)
            g = slope * z
            if shrink and not (active_rows and slope == 0):
                more = np.float32(seen / active if active_rows else 1.0)
                g = g + more * data.shrink[u] * old[u]
            elif slope == 0:
                continue
            x[u] = x[u] - step * g
    return x


@each_of("batch", [1, 3])
@each_of("shrink", [True, False])
@each_of("loss", LOSSES)
def test_one_worker_is_sequential_sgd_bit_for_bit(loss, shrink, batch):
    data = Sparse.random(targets=loss == "squares")
    x = data.zeros()
    order = np.concatenate([*orders(300, 1), *orders(300, 1, seed=1)])
    problem = data.problem(x, loss=loss, shrink=shrink)
    assert problem.run(alone("private"), order, GAMMA, batch) == 600
    assert np.isfinite(x).all()
    assert np.count_nonzero(x) > 150
    same_bits(x, sequential(data, order, loss=loss, shrink=shrink, batch=batch, active_rows=False))


@each_of("batch", [1, 4])
def test_active_rows_shrink_only_violating_rows_by_the_running_ratio(batch):
    data = Sparse.random()
    x = data.zeros()
    order = np.concatenate([*orders(300, 1), *orders(300, 1, seed=1)])
    # Two runs: the ratio is the problem's, not the run's.
    problem = data.problem(x, active_rows=True)
    assert problem.run(alone("private"), order[:300], GAMMA, batch) == 300
    assert problem.run(alone("private"), order[300:], GAMMA, batch) == 300
    same_bits(x, sequential(data, order, loss="hinge", shrink=True, batch=batch, active_rows=True))


@each_of("kind", KINDS[1:])
@each_of("batch", [1, 3])
@each_of("loss", LOSSES)
def test_every_scheme_with_one_worker_gives_the_bits_of_serial(loss, batch, kind):
    data = Sparse.random(n=3000, targets=loss == "squares")
    order = orders(3000, 1)[0]
    serial, x = data.zeros(), data.zeros()
    data.problem(serial, loss=loss).run(alone("private"), order, 0.1, batch)
    for ordered in (True, False):
        x[...] = 0
        scheme = alone(kind, hot=50, period=7, ordered_reads=ordered)
        assert data.problem(x, loss=loss).run(scheme, order, 0.1, batch) == 3000
        np.testing.assert_array_equal(x.view(np.uint32), serial.view(np.uint32))


@each_of("name", ["svm", "svm_violating"])
def test_one_step_of_the_svm_is_the_recorded_one(name):
    case = GOLDEN["svm"] | GOLDEN[name]
    x = np.zeros((1, WIDTH), np.float32)
    x[0, :5] = case["w"]
    problem = _native.LinearProblem(
        x,
        np.array([0, 3]),
        np.array(case["idx"], np.int32),
        np.array(case["x"], np.float32),
        np.array([case["y"]], np.float32),
        (2 * case["lam"] / np.array(case["deg"])).astype(np.float32),
    )
    problem.run(alone("private"), np.zeros(1, np.int32), case["gamma"])
    assert np.abs(x[0, :5] - case["w_new"]).max() <= CLASSIC_STEP_F32.atol
    assert not x[0, 5:].any()


@each_of(
    ("change", "message"),
    [
        ({"indices": np.array([2, 1], np.int32)}, "row 0: indices have to ascend, got 2 before 1"),
        ({"indices": np.array([1, 1], np.int32)}, "row 0: indices have to ascend, got 1 before 1"),
        ({"indices": np.array([1, 16], np.int32)}, "row 0 names coordinate 16 of 16"),
        ({"indices": np.array([-1, 3], np.int32)}, "row 0 names coordinate -1 of 16"),
        ({"indptr": np.array([0, 3, 2])}, "indptr descends at row 1|row 0"),
        ({"indptr": np.array([0, 2])}, "indptr has 2 entries, 2 labels want 3"),
        ({"values": np.ones(3, np.float32)}, "indices and values differ in length"),
        ({"shrink": np.ones(17, np.float32)}, "shrink has more coordinates than x"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change, message):
    arrays = {
        "indptr": np.array([0, 2, 2]),
        "indices": np.array([1, 2], np.int32),
        "values": np.ones(2, np.float32),
        "labels": np.ones(2, np.float32),
        "shrink": np.ones(0, np.float32),
    }
    x = np.zeros((1, WIDTH), np.float32)
    _native.LinearProblem(x, **arrays)
    with pytest.raises(ValueError, match=message):
        _native.LinearProblem(x, **(arrays | change))


# -- dense rows -----------------------------------------------------------------------------------


def dense_data(n, d, classes):
    rng = np.random.default_rng(3)
    features = rng.standard_normal((n, d), dtype=np.float32)
    labels = rng.integers(classes, size=n) if classes > 1 else np.where(rng.random(n) < 0.5, -1, 1)
    return features, labels.astype(np.float32), np.full(d, 0.01, np.float32)


def sequential_dense(features, labels, shrink, order, *, loss, classes, batch):
    """Plain sequential SGD in NumPy float32, (classes, d)."""
    x = np.zeros((classes, features.shape[1]), np.float32)
    for i in range(0, len(order), batch):
        examples = order[i : i + batch]
        step = np.float32(GAMMA) / np.float32(len(examples))
        for c in range(classes):
            g = np.zeros(features.shape[1], np.float32)
            for e in examples:
                y = np.float32(1 if labels[e] == c else -1) if classes > 1 else labels[e]
                slope = slope_of(loss, sums(features[e] * x[c], DENSE_LANES), y)
                if slope != 0:
                    g = g + slope * features[e]
            if shrink is not None:
                g = g + np.float32(len(examples)) * shrink * x[c]
            x[c] = x[c] - step * g
    return x


@each_of("kind", KINDS[:1] + tuple(k for k in KINDS[1:] if k != "hot_cold"))
@each_of(("d", "classes", "batch", "width"), [(5, 1, 1, 16), (70, 3, 1, 32), (100, 10, 7, 128)])
@each_of("loss", LOSSES)
def test_one_worker_on_dense_rows_is_sequential_sgd_bit_for_bit(
    loss, d, classes, batch, width, kind
):
    features, labels, shrink = dense_data(60, d, classes)
    x = np.zeros((classes * -(-d // width), width), np.float32)
    order = orders(60, 1)[0]
    for shrunk in (shrink, None):
        x[...] = 0
        problem = _native.DenseLinearProblem(
            x,
            features,
            labels,
            shrink[:0] if shrunk is None else shrunk,
            loss=loss,
            classes=classes,
        )
        assert problem.run(alone(kind), order, GAMMA, batch) == 60
        expected = sequential_dense(
            features, labels, shrunk, order, loss=loss, classes=classes, batch=batch
        )
        actual = x.reshape(classes, -1)
        same_bits(np.ascontiguousarray(actual[:, :d]), expected)
        assert not actual[:, d:].any()


def test_a_dense_problem_has_no_hot_head():
    features, labels, shrink = dense_data(4, 20, 1)
    x = np.zeros((2, WIDTH), np.float32)
    problem = _native.DenseLinearProblem(x, features, labels, shrink)
    with pytest.raises(ValueError, match="no hot head; write racy or lossless"):
        problem.run(alone("hot_cold", hot=16), orders(4, 1)[0], 0.1)


def test_classes_that_do_not_exist_are_refused():
    features, labels, shrink = dense_data(4, 20, 1)
    x = np.zeros((6, WIDTH), np.float32)
    labels[2] = 3
    with pytest.raises(ValueError, match="label 0 is no class from 0 to 2|label 2 is no class"):
        _native.DenseLinearProblem(x, features, labels, shrink, classes=3)
