"""The native linear maps equal NumPy's products, of any shape and with any threads."""

import numpy as np
import pytest

from mlxhog._native import ops
from tests.metal.sample import draw, unwritten, wide
from tests.pairs import each_of
from tests.tolerances import OP_F32, assert_close


@each_of("rows", [0, 1, 13, 14, 15, 300])
@each_of("width", [1, 17, 32, 600])
@each_of("threads", [1, 2])
def test_outputs_and_gradients(rows, width, threads):
    outs = (1, 4, 15, 33, 64)
    x = draw(rows, width)
    weights = [draw(out, width, seed=out) for out in outs]
    biases = [draw(out) if out % 2 else None for out in outs]
    results = [unwritten(rows, out) for out in outs]
    ops.linears(x, weights, biases, results, threads=threads)
    for w, b, y in zip(weights, biases, results, strict=True):
        expected = wide(x)[0] @ wide(w)[0].T + (0 if b is None else b)
        assert_close(y, expected, OP_F32)

    d_outs = [draw(rows, out, seed=out + 1) for out in outs]
    dx, d_weights = unwritten(rows, width), [unwritten(*w.shape) for w in weights]
    d_biases = [None if b is None else unwritten(*b.shape) for b in biases]
    ops.linears_grad(x, weights, d_outs, dx, d_weights, d_biases, threads=threads)
    wanted_dx = sum((wide(d)[0] @ w for d, w in zip(d_outs, weights, strict=True)), 0 * x)
    assert_close(dx, wanted_dx, OP_F32, label="dx")
    for d, d_weight, d_bias in zip(d_outs, d_weights, d_biases, strict=True):
        assert_close(d_weight, wide(d)[0].T @ x, OP_F32, label="dW")
        if d_bias is not None:
            assert_close(d_bias, wide(d)[0].sum(0), OP_F32, label="db")


def test_leaving_the_input_gradient_out_changes_no_weight_gradient():
    x, w, d = draw(50, 20), draw(30, 20), draw(50, 30)
    with_dx, without_dx = unwritten(30, 20), unwritten(30, 20)
    ops.linears_grad(x, [w], [d], unwritten(50, 20), [with_dx], [None], threads=1)
    ops.linears_grad(x, [w], [d], None, [without_dx], [None], threads=1)
    np.testing.assert_array_equal(with_dx, without_dx)


def test_the_thread_count_does_not_change_a_bit():
    x, w = draw(500, 300), draw(130, 300)
    one, two = unwritten(500, 130), unwritten(500, 130)
    ops.linears(x, [w], [None], [one], threads=1)
    ops.linears(x, [w], [None], [two], threads=3)
    np.testing.assert_array_equal(one, two)


def test_wrong_sizes_are_refused_by_name():
    x, w = draw(3, 4), draw(5, 4)
    with pytest.raises(ValueError, match=r"weights has shape \(5, 5\); .* = \(5, 4\)"):
        ops.linears(x, [draw(5, 5)], [None], [unwritten(3, 5)], threads=1)
    with pytest.raises(ValueError, match=r"outs has shape \(3, 4\); .* = \(3..., 5\)"):
        ops.linears(x, [w], [None], [unwritten(3, 4)], threads=1)
    with pytest.raises(ValueError, match="one entry per map"):
        ops.linears(x, [w], [], [unwritten(3, 5)], threads=1)
