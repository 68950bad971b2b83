"""The cross entropy, with a cap and without, and its gradient equal their float64 definitions."""

import numpy as np
import pytest

from mlxhog._native import ops
from tests.metal import reference
from tests.metal.sample import draw, unwritten, wide
from tests.pairs import each_of
from tests.tolerances import OP_F32, assert_close


def labels_of(rows, V, masked):
    r = np.random.default_rng(rows)
    labels = r.integers(0, V, rows).astype(np.int32)
    labels[r.random(rows) < masked] = -100
    return labels


@each_of(("rows", "V"), [(1, 1), (1, 2), (7, 33), (200, 320)])
@each_of("masked", [0.0, 0.4, 1.1])
@each_of("threads", [1, 3])
@each_of("scale", [1.0, 100.0])
@each_of("cap", [30.0, None])
def test_sum_count_and_gradient(rows, V, masked, threads, scale, cap):
    logits, labels = draw(rows, V, scale=scale), labels_of(rows, V, masked)
    gradient = unwritten(rows, V)
    nats, count = ops.cross_entropy(logits, labels, gradient, cap=cap, threads=threads)
    expected, wanted_count, wanted_gradient = reference.capped_cross_entropy(
        wide(logits)[0], labels, cap=cap
    )
    assert count == wanted_count
    assert_close(nats, expected, OP_F32, label="nats")
    assert_close(gradient, wanted_gradient, OP_F32, label="gradient")
    assert not gradient[labels == -100].any()


@each_of("cap", [30.0, None])
def test_the_sum_without_a_gradient_is_the_same(cap):
    logits, labels = draw(100, 50), labels_of(100, 50, 0.2)
    with_gradient = ops.cross_entropy(logits, labels, unwritten(100, 50), cap=cap, threads=1)
    assert ops.cross_entropy(logits, labels, None, cap=cap, threads=2) == with_gradient


@each_of(("rows", "V"), [(0, 3), (1, 1), (70, 33), (900, 1500)])
@each_of(("threads", "cap"), [(1, 30.0), (3, None)])
def test_without_whole_logits_the_loss_and_both_gradients_are_those_of_the_logits(
    rows, V, threads, cap
):
    x, w, labels = draw(rows, 24), draw(V, 24, seed=1), labels_of(rows, V, 0.2)
    how = {"cap": cap, "threads": threads}
    logits, gradient = unwritten(rows, V), unwritten(rows, V)
    ops.linears(x, [w], [None], [logits], threads=1)
    sums = ops.cross_entropy(logits, labels, gradient, **how)
    dx, dw = unwritten(rows, 24), unwritten(V, 24)
    own = ops.linear_cross_entropy(x, w, labels, dx, dw, **how)
    assert own[1] == sums[1]
    assert_close(own[0], sums[0], OP_F32, label="nats")
    assert_close(dx, wide(gradient)[0] @ wide(w)[0], OP_F32, label="dx")
    assert_close(dw, wide(gradient)[0].T @ wide(x)[0], OP_F32, label="dw")
    assert ops.linear_cross_entropy(x, w, labels, None, None, **how) == own


def test_a_large_cap_does_not_underflow():
    logits = np.array([[900.0, -900.0, 0.0]], np.float32)
    nats, _ = ops.cross_entropy(logits, np.zeros(1, np.int32), None, cap=1000.0, threads=1)
    assert nats == 0.0


def test_logits_of_any_size_need_no_cap():
    logits = np.array([[1e30, 1e4, -1e30]], np.float32)
    nats, _ = ops.cross_entropy(logits, np.zeros(1, np.int32), None, cap=None, threads=1)
    assert nats == 0.0


@each_of("cap", [30.0, None])
def test_a_nan_logit_makes_the_sum_nan(cap):
    logits = draw(3, 5)
    logits[1, 2] = np.nan
    nats, _ = ops.cross_entropy(logits, np.zeros(3, np.int32), None, cap=cap, threads=1)
    assert np.isnan(nats)


@each_of("label", [5, -1, -101])
def test_a_label_outside_the_vocabulary_is_refused_with_its_place(label):
    labels = np.array([0, label], np.int32)
    with pytest.raises(ValueError, match=rf"label {label} at position 1 .* \[0, 5\)"):
        ops.cross_entropy(draw(2, 5), labels, None, cap=30.0, threads=1)
    with pytest.raises(ValueError, match=rf"label {label} at position 1 .* \[0, 5\)"):
        ops.linear_cross_entropy(draw(2, 3), draw(5, 3), labels, None, None, cap=None, threads=1)


def test_scale_multiplies_in_place():
    x = draw(100_001)
    expected = x * np.float32(0.25)
    ops.scale(x, factor=0.25, threads=2)
    np.testing.assert_array_equal(x, expected)
