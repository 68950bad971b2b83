"""The native ops stand in for the reference ops in every way a model may call them."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog._native import ops
from mlxhog.models.ops.native import adapter_mlx
from mlxhog.models.ops.native.adapter_mlx import OPS as NATIVE_MLX
from mlxhog.models.ops.native.adapter_torch import OPS as NATIVE_TORCH
from tests.models.twins import Twin
from tests.pairs import each_of
from tests.tolerances import GRADIENT_ANY_F32, PRODUCT_F32, assert_close

Arrays = Mapping[str, Any]
PAIRS = {
    "torch": (Twin("torch", "native"), Twin("torch", "reference")),
    "mlx": (Twin("mlx", "native"), Twin("mlx", "reference")),
}
pairs = pytest.mark.parametrize(("native", "reference"), PAIRS.values(), ids=PAIRS)


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def assert_same_grads(native, reference, scalar, inputs):
    grads, expected = native.op_grads(scalar, inputs), reference.op_grads(scalar, inputs)
    assert grads.keys() == expected.keys()
    for name in expected:
        assert_close(grads[name], expected[name], GRADIENT_ANY_F32, label=name)


@pytest.mark.slow
@each_of(
    ("rows", "width", "out"),
    [
        (1, 1, 1),
        (13, 31, 33),  # less than one tile, and a part of a panel
        (463, 300, 530),  # past the blocks of rows, columns and depth that stay in a cache
        (2, 33, 31_800),  # more columns than are packed at once
    ],
)
@each_of("threads", [1, 3])
def test_linears_of_any_size_are_right_in_every_block(rows, width, out, threads):
    x, w, dy = draw(rows, width), draw(out, width), draw(rows, out)
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
    ops.linears(x, [w], [None], [y], threads=threads)
    ops.linears_grad(x, [w], [dy], dx, [dw], [None], threads=threads)
    for actual, expected in (
        (y, x.astype(np.float64) @ w.T),
        (dx, dy.astype(np.float64) @ w),
        (dw, dy.T.astype(np.float64) @ x),
    ):
        assert_close(actual, expected, PRODUCT_F32)


@pairs
def test_gradients_of_linears_whose_outputs_are_partly_unused(native, reference):
    inputs = {"x": draw(6, 8), "a": draw(5, 8), "b": draw(4, 8), "c": draw(4), "d": draw(3, 8)}

    def scalar(ops, p):
        first, second, _ = ops.linears(p["x"], (p["a"], p["b"], p["d"]), (None, p["c"], None))
        return (first**2).sum() + (second**3).sum() + 0 * p["d"].sum()

    assert_same_grads(native, reference, scalar, inputs)


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_what_the_cell_keeps_for_its_gradient_grows_linearly_with_the_length(chunk_size):
    def kept(S):
        """Numbers kept between the forward and the backward pass; heads wider than the chunk."""
        sizes = []

        def count(x):
            sizes.append(x.numel())
            return x

        inputs = [torch.tensor(draw(1, S, 2, 8)).requires_grad_() for _ in "qkv"]
        gates = [torch.tensor(draw(1, S, 2)) for _ in "if"]
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            NATIVE_TORCH.mlstm_cell(*inputs, *gates, chunk_size=chunk_size, eps=1e-6)
        return sum(sizes)

    short, long = kept(1024) - kept(512), kept(4096) - kept(2048)
    assert long == 4 * short


def test_a_second_backward_through_the_loss_says_what_to_do():
    logits = torch.tensor(draw(3, 5)).requires_grad_()
    nats, _ = NATIVE_TORCH.capped_cross_entropy(logits, torch.tensor([0, 1, -100]), 30.0)
    torch.autograd.grad(nats, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        torch.autograd.grad(nats, logits)
    x, w = (torch.tensor(draw(n, 4)).requires_grad_() for n in (3, 5))
    nats, _ = NATIVE_TORCH.linear_cross_entropy(x, w, torch.tensor([0, 1, -100]), 30.0)
    torch.autograd.grad(nats, (x, w), retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        torch.autograd.grad(nats, w)


def test_mlx_ops_without_a_gradient_compute_the_same_as_constants():
    x, w = mx.array(draw(4, 6)), mx.array(draw(6))
    q, k, v = (mx.array(draw(2, 9, 2, 4, seed=seed)) for seed in range(3))
    i, f = (mx.array(draw(2, 9, 2, seed=seed)) for seed in (3, 4))

    def results():
        h, state = NATIVE_MLX.mlstm_cell(q, k, v, i, f, chunk_size=4, eps=1e-6)
        convolved = NATIVE_MLX.causal_conv(x[None], mx.ones((6, 1, 3)), w, silu=True)
        return [NATIVE_MLX.rms_norm(x, w, 1e-6), h, *state, *convolved]

    expected = results()
    with adapter_mlx.without_gradient():
        constants = results()
        gradient = mx.grad(lambda y: NATIVE_MLX.soft_cap(y, 2.0).sum())(x)
    for y, y_expected in zip(constants, expected, strict=True):
        np.testing.assert_array_equal(y, y_expected)
    assert not np.any(np.array(gradient))
    assert np.any(np.array(mx.grad(lambda y: NATIVE_MLX.soft_cap(y, 2.0).sum())(x)))


def test_a_view_of_a_row_major_array_is_its_memory_and_keeps_it_alive():
    for x in (mx.arange(6.0).reshape(2, 3) + 1, mx.arange(4), mx.array(3.0), mx.zeros((0, 4))):
        (view,) = adapter_mlx.views(x)  # which evaluates
        assert view.ctypes.data == np.frombuffer(memoryview(x), np.uint8).ctypes.data
        assert (view.shape, str(view.dtype)) == (x.shape, str(x.dtype).removeprefix("mlx.core."))
    (view,) = adapter_mlx.views(mx.arange(1000.0) * 2)  # nobody else holds the array
    mx.eval([mx.full((1000,), 7.0) for _ in range(50)])  # which would take its memory
    np.testing.assert_array_equal(view, np.arange(1000.0) * 2)


def test_other_types_than_float32_are_refused():
    with pytest.raises(TypeError):
        NATIVE_TORCH.soft_cap(torch.zeros(3, dtype=torch.float64), 1.0)
    with pytest.raises(TypeError):
        NATIVE_MLX.soft_cap(mx.zeros(3, mx.float16), 1.0)
    with pytest.raises(TypeError, match=r"take float32, got mlx\.core\.bfloat16"):
        NATIVE_MLX.soft_cap(mx.zeros(3, mx.bfloat16), 1.0)
