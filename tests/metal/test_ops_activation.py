"""SwiGLU and the soft cap equal their float64 definitions; infinities and NaN behave."""

import math

import numpy as np

from mlxhog._native import ops
from mlxhog.models.ops.operators import ACTIVATIONS, activation_name
from tests.metal import reference
from tests.metal.sample import draw, unwritten, wide
from tests.models.twins import EXACT
from tests.pairs import each_of
from tests.tolerances import OP_F32, assert_close

sizes = each_of("size", [1, 15, 16, 1000, 40_001])
threads = each_of("threads", [1, 2])


@sizes
@threads
def test_swiglu_and_its_gradients(size, threads):
    gate, up, d_out = draw(size, scale=8), draw(size, seed=1), draw(size, seed=2)
    out, d_gate, d_up = unwritten(size), unwritten(size), unwritten(size)
    ops.swiglu(gate, up, out, threads=threads)
    ops.swiglu_grad(gate, up, d_out, d_gate, d_up, threads=threads)
    assert_close(out, reference.swiglu(*wide(gate, up)), OP_F32)
    wanted_gate, wanted_up = reference.swiglu_grad(*wide(gate, up, d_out))
    assert_close(d_gate, wanted_gate, OP_F32, label="d_gate")
    assert_close(d_up, wanted_up, OP_F32, label="d_up")


@sizes
@threads
@each_of("name", sorted({activation_name(name) for name in ACTIVATIONS}))
def test_glu_and_its_gradients(size, threads, name):
    gate, up, d_out = draw(size, scale=4), draw(size, seed=1), draw(size, seed=2)
    out, d_gate, d_up = unwritten(size), unwritten(size), unwritten(size)
    ops.glu(name, gate, up, out, threads=threads)
    ops.glu_grad(name, gate, up, d_out, d_gate, d_up, threads=threads)
    (expected,), grads = EXACT.run(
        lambda ops, t: ops.glu(t["gate"], t["up"], name), {"gate": gate, "up": up}, {}, [d_out]
    )
    assert_close(out, expected, OP_F32)
    assert_close(d_gate, grads["gate"], OP_F32, label="d_gate")
    assert_close(d_up, grads["up"], OP_F32, label="d_up")


def test_gelu_is_precise_where_it_is_nearly_zero():
    x = np.linspace(-8, 30, 100_001).astype(np.float32)
    out = unwritten(x.size)
    ops.glu("gelu", x, np.ones_like(x), out, threads=1)
    expected = x * np.array([math.erfc(-y / math.sqrt(2.0)) / 2.0 for y in x.tolist()])
    assert (np.abs(out - expected) <= 4e-6 * np.abs(expected)).all()


@each_of("name", sorted({activation_name(name) for name in ACTIVATIONS}))
def test_activations_have_the_right_limits_and_pass_nan_on(name):
    x = np.array([np.nan, 0.0, 1e4, -1e4], np.float32)
    out, slope, d_up = unwritten(4), unwritten(4), unwritten(4)
    ops.glu(name, x, np.ones_like(x), out, threads=1)
    ops.glu_grad(name, x, np.ones_like(x), np.ones_like(x), slope, d_up, threads=1)
    (expected,), grads = EXACT.run(
        lambda ops, t: ops.activate(t["x"], name), {"x": x[1:]}, {}, [np.ones(3)]
    )
    assert np.isnan(out[0])
    assert_close(out[1:], expected, OP_F32)
    assert_close(slope[1:], grads["x"], OP_F32)


@sizes
@threads
@each_of("cap", [15.0, 30.0, 0.5])
def test_soft_cap_and_its_gradient(size, threads, cap):
    x, d_out = draw(size, scale=cap), draw(size, seed=1)
    out, dx = unwritten(size), unwritten(size)
    ops.soft_cap(x, out, cap=cap, threads=threads)
    ops.soft_cap_grad(out, d_out, dx, cap=cap, threads=threads)
    assert_close(out, reference.soft_cap(*wide(x), cap=cap), OP_F32)
    assert_close(dx, reference.soft_cap_grad(*wide(x, d_out), cap=cap), OP_F32)


def test_elementary_functions_are_within_a_few_ulp():
    # silu(x) is x * sigmoid(x), soft_cap(x, 1) is tanh(x): exp, sigmoid and tanh through their ops.
    x = np.linspace(-30, 30, 100_001).astype(np.float32)
    out = unwritten(x.size)
    ops.swiglu(x, np.ones_like(x), out, threads=1)
    expected = reference.swiglu(*wide(x, np.ones_like(x)))
    assert (np.abs(out - expected) <= 4 * np.spacing(np.abs(expected).astype(np.float32))).all()
    ops.soft_cap(x, out, cap=1.0, threads=1)
    expected = np.tanh(x.astype(np.float64))
    assert (np.abs(out - expected) <= 3 * np.spacing(np.abs(expected).astype(np.float32))).all()


def test_the_functions_have_the_right_limits_and_pass_nan_on():
    x = np.array([np.inf, -np.inf, np.nan, 0.0, 1e30, -1e30], np.float32)
    out = unwritten(x.size)
    ops.soft_cap(x, out, cap=2.0, threads=1)
    np.testing.assert_array_equal(out, [2, -2, np.nan, 0, 2, -2])
    ops.swiglu(x[2:], np.ones(4, np.float32), out[2:], threads=1)
    np.testing.assert_array_equal(out[2:], np.array([np.nan, 0, 1e30, -0.0], np.float32))
