"""The native norms equal their float64 definitions, forward and backward."""

import numpy as np
import pytest

from mlxhog._native import ops
from tests.metal import reference
from tests.metal.sample import draw, unwritten, wide
from tests.models.twins import EXACT
from tests.pairs import each_of
from tests.tolerances import NORM_GRADIENT_F32, OP_F32, assert_close

EPS = 1e-6
SHAPES = [(1, 1), (1, 7), (3, 5, 16), (2, 200, 33), (1, 128)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
threads = pytest.mark.parametrize("threads", [1, 3])


@shapes
@threads
def test_rms_norm_and_its_gradients(shape, threads):
    x, w, d_out = draw(*shape), draw(shape[-1]), draw(*shape, seed=1)
    out, dx, dw = unwritten(*shape), unwritten(*shape), unwritten(shape[-1])
    ops.rms_norm(x, w, out, eps=EPS, threads=threads)
    ops.rms_norm_grad(x, w, d_out, dx, dw, eps=EPS, threads=threads)
    assert_close(out, reference.rms_norm(*wide(x, w), eps=EPS), OP_F32)
    wanted_dx, wanted_dw = reference.rms_norm_grad(*wide(x, w, d_out), eps=EPS)
    assert_close(dx, wanted_dx, OP_F32, label="dx")
    assert_close(dw, wanted_dw, OP_F32, label="dw")


def test_rms_norm_of_tiny_rows_keeps_its_eps():
    x, w, out = draw(4, 32, scale=1e-4), np.ones(32, np.float32), unwritten(4, 32)
    ops.rms_norm(x, w, out, eps=EPS, threads=1)
    assert_close(out, reference.rms_norm(*wide(x, w), eps=EPS), OP_F32)


@each_of(("rows", "heads", "width"), [(1, 1, 1), (5, 3, 7), (300, 4, 32), (2, 1, 64)])
@threads
def test_head_norm_gate_and_its_gradients(rows, heads, width, threads):
    d = heads * width
    h, o, w, d_out = (
        draw(rows, heads, width),
        draw(rows, d, scale=4),
        draw(d),
        draw(rows, d, seed=1),
    )
    out, dh, do, dw = unwritten(rows, d), unwritten(*h.shape), unwritten(rows, d), unwritten(d)
    ops.head_norm_gate(h, o, w, out, eps=EPS, threads=threads)
    ops.head_norm_gate_grad(h, o, w, d_out, dh, do, dw, eps=EPS, threads=threads)
    assert_close(out, reference.head_norm_gate(*wide(h, o, w), eps=EPS), OP_F32)
    target = reference.head_norm_gate_grad(*wide(h, o, w, d_out), eps=EPS)
    for name, actual, expected in zip(("dh", "do", "dw"), (dh, do, dw), target, strict=True):
        assert_close(actual, expected, OP_F32, label=name)


@each_of(("rows", "heads", "width"), [(1, 1, 1), (5, 3, 7), (300, 4, 32), (2, 1, 64)])
@threads
def test_layer_norm_and_its_gradients(rows, heads, width, threads):
    x, w = draw(rows, heads, width), draw(heads * width)
    out, dx, dw = unwritten(*x.shape), unwritten(*x.shape), unwritten(w.size)
    d_out = draw(*x.shape, seed=1)
    ops.layer_norm(x, w, out, eps=EPS, threads=threads)
    ops.layer_norm_grad(x, w, d_out, dx, dw, eps=EPS, threads=threads)
    (expected,), grads = EXACT.run(
        lambda ops, t: ops.head_norm(t["x"][None], t["w"], EPS),
        {"x": x, "w": w},
        {},
        [d_out.reshape(1, rows, -1)],
    )
    assert_close(out, expected.reshape(out.shape), OP_F32)
    assert_close(dx, grads["x"], NORM_GRADIENT_F32, label="dx")
    assert_close(dw, grads["w"], OP_F32, label="dw")


@each_of(("rows", "heads", "width"), [(1, 1, 1), (5, 3, 7), (300, 4, 32), (2, 1, 64)])
@threads
def test_head_norm_skip_gate_and_its_gradients(rows, heads, width, threads):
    d = heads * width
    inputs = {
        "h": draw(rows, heads, width),
        "c": draw(rows, d),
        "z": draw(rows, d, scale=4),
        "w": draw(d),
        "skip": draw(d, seed=1),
    }
    d_out, out = draw(rows, d, seed=1), unwritten(rows, d)
    grads = {name: unwritten(*x.shape) for name, x in inputs.items()}
    ops.head_norm_skip_gate(*inputs.values(), out, eps=EPS, threads=threads)
    ops.head_norm_skip_gate_grad(*inputs.values(), d_out, *grads.values(), eps=EPS, threads=threads)

    def call(ops, t):
        h, c, z = (t[name][None] for name in "hcz")
        return ops.head_norm_skip_gate(h, c, z, t["w"], t["skip"], EPS)[0]

    (expected,), wanted = EXACT.run(call, inputs, {}, [d_out])
    assert_close(out, expected, OP_F32)
    for name, gradient in wanted.items():
        tolerance = NORM_GRADIENT_F32 if name == "h" else OP_F32
        assert_close(grads[name], gradient, tolerance, label=name)


def test_the_small_outputs_of_a_fresh_cell_feel_the_eps_of_the_head_norm():
    h, o, w = draw(3, 2, 16, scale=1e-3), draw(3, 32), draw(32)
    out = unwritten(3, 32)
    ops.head_norm_gate(h, o, w, out, eps=EPS, threads=1)
    assert_close(out, reference.head_norm_gate(*wide(h, o, w), eps=EPS), OP_F32)


def test_weight_gradients_have_the_same_bits_for_any_thread_count():
    x, w, d_out = draw(1000, 64), draw(64), draw(1000, 64, seed=1)
    results = []
    for threads in (1, 2, 5):
        dx, dw = unwritten(1000, 64), unwritten(64)
        ops.rms_norm_grad(x, w, d_out, dx, dw, eps=EPS, threads=threads)
        results.append(dw)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_wrong_sizes_and_types_are_refused_before_anything_is_written():
    x, w, out = draw(4, 8), draw(8), np.zeros((4, 8), np.float32)
    with pytest.raises(ValueError, match=r"w has shape \(7,\); .*\(D,\) = \(8,\)"):
        ops.rms_norm(x, w[:7], out, eps=EPS, threads=1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        ops.rms_norm(x.astype(np.float64), w, out, eps=EPS, threads=1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        ops.rms_norm(x.T.copy().T, w, out, eps=EPS, threads=1)
    assert not out.any()
