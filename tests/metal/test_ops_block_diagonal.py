"""The native block-diagonal maps equal their float64 definition, blocks of any size in one call."""

import numpy as np
import pytest

from mlxhog._native import ops
from tests.metal.sample import draw, unwritten
from tests.models.twins import EXACT
from tests.pairs import each_of
from tests.tolerances import OP_F32, OP_GRADIENT_F32, assert_close

# Rows, and (G, out / G, in / G) of every weight: each size with a kernel of its own, rows that
# do not fill a vector, products of matrices, both kinds in one call.
CASES = [
    (1, [(1, 1, 1)]),
    (300, [(5, 1, 1)]),
    (7, [(11, 2, 2)]),
    (300, [(64, 4, 4), (64, 4, 4)]),
    (5, [(5, 4, 4)]),
    (9, [(3, 8, 8)]),
    (6, [(2, 16, 16)]),
    (300, [(4, 32, 32), (4, 8, 32)]),
    (5, [(2, 3, 7)]),
    (300, [(6, 4, 4), (3, 5, 8), (1, 2, 24), (3, 8, 8)]),
]
cases = pytest.mark.parametrize(("rows", "blocks"), CASES, ids=str)
Blocks = list[tuple[int, int, int]]


def arguments(rows, blocks):
    x = draw(rows, blocks[0][0] * blocks[0][2])
    weights = [draw(*block, seed=k) for k, block in enumerate(blocks)]
    return x, weights, [draw(rows, G * out, seed=9 + k) for k, (G, out, _) in enumerate(blocks)]


def gradients(rows, blocks, threads):
    x, weights, dys = arguments(rows, blocks)
    dx, d_weights = unwritten(*x.shape), [unwritten(*w.shape) for w in weights]
    d_biases = [unwritten(dy.shape[1]) for dy in dys]
    ops.block_diagonal_grad(x, weights, dys, dx, d_weights, d_biases, threads=threads)
    return dx, d_weights, d_biases


@cases
@each_of("threads", [1, 3])
def test_outputs_and_gradients(rows, blocks, threads):
    x, weights, dys = arguments(rows, blocks)
    biases = [draw(dy.shape[1]) if k % 2 == 0 else None for k, dy in enumerate(dys)]
    outs = [unwritten(*dy.shape) for dy in dys]
    ops.block_diagonal(x, weights, biases, outs, threads=threads)
    dx, d_weights, d_biases = gradients(rows, blocks, threads)
    inputs = {"x": x} | {f"w{k}": w for k, w in enumerate(weights)}
    inputs |= {f"b{k}": np.zeros(dy.shape[1]) if b is None else b
               for k, (b, dy) in enumerate(zip(biases, dys, strict=True))}  # fmt: skip

    def call(ops, t):
        ws, bs = ([t[f"{name}{k}"] for k in range(len(dys))] for name in "wb")
        return ops.block_diagonal(t["x"], ws, bs)

    ys, grads = EXACT.run(call, inputs, {}, dys)
    assert_close(dx, grads["x"], OP_GRADIENT_F32, label="x")
    for k, y in enumerate(ys):
        assert_close(outs[k], y, OP_F32, label=f"out {k}")
        assert_close(d_weights[k], grads[f"w{k}"], OP_GRADIENT_F32, label=f"weight {k}")
        assert_close(d_biases[k], grads[f"b{k}"], OP_GRADIENT_F32, label=f"bias {k}")


def test_gradients_have_the_same_bits_for_any_thread_count():
    blocks = [(8, 4, 4), (1, 32, 32), (4, 8, 8)]
    results = [gradients(1000, blocks, threads) for threads in (1, 2, 5)]
    for dx, d_weights, d_biases in results[1:]:
        np.testing.assert_array_equal(dx, results[0][0])
        for k in range(len(blocks)):
            np.testing.assert_array_equal(d_weights[k], results[0][1][k])
            np.testing.assert_array_equal(d_biases[k], results[0][2][k])


def test_an_input_without_gradient_is_left_out():
    x, weights, dys = arguments(6, [(3, 4, 4), (2, 5, 6)])
    d_weights = [unwritten(*w.shape) for w in weights]
    ops.block_diagonal_grad(x, weights, dys, None, d_weights, [None, None], threads=1)
    for d_weight, expected in zip(
        d_weights, gradients(6, [(3, 4, 4), (2, 5, 6)], 1)[1], strict=True
    ):
        np.testing.assert_array_equal(d_weight, expected)


def test_without_maps_the_input_gradient_is_zero():
    dx = unwritten(4, 6)
    ops.block_diagonal_grad(draw(4, 6), [], [], dx, [], [], threads=1)
    assert (dx == 0).all()


def test_blocks_that_do_not_split_the_input_are_refused():
    x, out = draw(3, 12), np.zeros((3, 12), np.float32)
    with pytest.raises(ValueError, match="weight has 2 blocks of 4 inputs, x has 12"):
        ops.block_diagonal(x, [draw(2, 6, 4)], [None], [out], threads=1)
    with pytest.raises(ValueError, match=r"outs has shape \(3, 11\); .* = \(3..., 12\)"):
        ops.block_diagonal(x, [draw(3, 4, 4)], [None], [out[:, :11].copy()], threads=1)
    assert not out.any()
