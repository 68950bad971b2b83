"""The native convolution equals its float64 definition for any shape, document and thread count."""

import numpy as np
import pytest

from mlxhog._native import ops
from tests.metal.sample import draw, unwritten
from tests.models.twins import EXACT
from tests.pairs import each_of
from tests.tolerances import OP_F32, OP_GRADIENT_F32, assert_close

# B, S, C, K: more taps than one pass takes, several tasks, fewer positions than taps, one of each.
SHAPES = [(2, 300, 16, 4), (3, 9, 40, 5), (2, 130, 3, 9), (1, 1, 7, 4), (1, 2, 1, 8), (1, 1, 1, 1)]
shapes = each_of("shape", SHAPES, ids=str)
threads = each_of("threads", [1, 3])
PARTS = ("dx", "dw", "db", "d_state")


def arguments(shape, *, packed):
    """x, w, b, state and starts."""
    B, S, C, K = shape
    starts = (np.random.default_rng(S).random((B, S)) < 0.2).astype(np.uint8) if packed else None
    return draw(B, S, C), draw(C, 1, K), draw(C), draw(B, K - 1, C, seed=1), starts


def forward(inputs, *, silu, threads):
    y, last = unwritten(*inputs[0].shape), unwritten(*inputs[3].shape)
    ops.causal_conv(*inputs, y, last, silu=silu, threads=threads)
    return y, last


def gradients(inputs, *, silu, threads):
    dy, d_last = draw(*inputs[0].shape, seed=2), draw(*inputs[3].shape, seed=3)
    result = tuple(unwritten(*x.shape) for x in inputs[:4])
    ops.causal_conv_grad(*inputs, dy, d_last, *result, silu=silu, threads=threads)
    return result


@shapes
@threads
@each_of("packed", [False, True])
@each_of("silu", [False, True])
def test_output_last_inputs_and_gradients(shape, threads, packed, silu):
    inputs = arguments(shape, packed=packed)
    named = dict(zip(("x", "w", "b", "state"), inputs, strict=False))
    weights = draw(*inputs[0].shape, seed=2), draw(*inputs[3].shape, seed=3)
    (wanted_y, wanted_last), grads = EXACT.run(
        lambda ops, t: ops.causal_conv(**t, silu=silu), named, {"starts": inputs[4]}, weights
    )
    y, last = forward(inputs, silu=silu, threads=threads)
    assert_close(y, wanted_y, OP_F32)
    np.testing.assert_array_equal(last, wanted_last.astype(np.float32))
    result = gradients(inputs, silu=silu, threads=threads)
    for name, actual, expected in zip(PARTS, result, grads.values(), strict=True):
        assert_close(actual, expected, OP_GRADIENT_F32, label=name)


def test_gradients_have_the_same_bits_for_any_thread_count():
    inputs = arguments((3, 700, 24, 4), packed=True)
    one, two, five = (gradients(inputs, silu=True, threads=n) for n in (1, 2, 5))
    for name, a, b, c in zip(PARTS, one, two, five, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        np.testing.assert_array_equal(a, c, err_msg=name)


def test_a_state_left_out_is_zero_and_needs_no_gradient():
    x, w, b, state, _ = arguments((2, 5, 6, 4), packed=False)
    zeros = np.zeros_like(state)
    expected = gradients((x, w, b, zeros, None), silu=True, threads=1)
    y, last = unwritten(*x.shape), unwritten(*state.shape)
    ops.causal_conv(x, w, b, None, None, y, last, silu=True, threads=1)
    np.testing.assert_array_equal(y, forward((x, w, b, zeros, None), silu=True, threads=1)[0])
    actual = tuple(unwritten(*a.shape) for a in (x, w, b))
    dy, d_last = draw(*x.shape, seed=2), draw(*state.shape, seed=3)
    ops.causal_conv_grad(x, w, b, None, None, dy, d_last, *actual, None, silu=True, threads=1)
    for name, a, b in zip(PARTS, actual, expected, strict=False):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_wrong_sizes_are_refused_before_anything_is_written():
    x, w, b, state, _ = arguments((2, 5, 6, 4), packed=False)
    y, last = np.zeros_like(x), np.zeros_like(state)
    with pytest.raises(ValueError, match=r"state has shape \(2, 2, 6\); .*K-1, C\) = \(2, 3, 6\)"):
        ops.causal_conv(x, w, b, state[:, :2].copy(), None, y, last, silu=True, threads=1)
    with pytest.raises(ValueError, match=r"w has shape \(5, 1, 4\); .* = \(6, 1, 4\)"):
        ops.causal_conv(x, w[:5], b, state, None, y, last, silu=True, threads=1)
    with pytest.raises(ValueError, match="S is 0, expected at least 1"):
        ops.causal_conv(x[:, :0], w, b, state, None, y[:, :0], last, silu=True, threads=1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        ops.causal_conv(x, w, b, state, np.ones((2, 5)), y, last, silu=True, threads=1)
    assert not y.any()
    assert not last.any()
