"""What holds of native operators alone; test_operators.py: what they compute."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog._native import ops
from mlxhog.models.ops.native import adapter_mlx
from mlxhog.models.ops.native.adapter_torch import OPS as NATIVE_TORCH
from mlxhog.models.ops.native.pairs import ATTENTION, REGRESSION
from tests.models.operators import draw
from tests.pairs import each_of
from tests.tolerances import PRODUCT_F32, assert_close


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
    exact = (x.astype(np.float64) @ w.T, dy.astype(np.float64) @ w, dy.T.astype(np.float64) @ x)
    for actual, expected in zip((y, dx, dw), exact, strict=True):
        assert_close(actual, expected, PRODUCT_F32)


@each_of("chunk_size", [4, 64])
def test_what_the_cell_keeps_for_its_gradient_grows_linearly_with_the_length(chunk_size):
    def kept(S):
        """Numbers kept between the forward and the backward pass; heads wider than the chunk."""
        sizes = []
        inputs = [torch.tensor(draw(1, S, 2, 8)).requires_grad_() for _ in "qkv"]
        gates = [torch.tensor(draw(1, S, 2)) for _ in "if"]
        count = torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        )
        with count:
            NATIVE_TORCH.mlstm_cell(*inputs, *gates, chunk_size=chunk_size, eps=1e-6)
        return sum(sizes)

    assert kept(4096) - kept(2048) == 4 * (kept(1024) - kept(512))


def test_a_second_backward_through_the_loss_says_what_to_do():
    x, w = (torch.tensor(draw(n, 4)).requires_grad_() for n in (3, 5))
    labels = torch.tensor([0, 1, -100])
    for loss in (
        lambda: NATIVE_TORCH.capped_cross_entropy(x, labels, 30.0),
        lambda: NATIVE_TORCH.linear_cross_entropy(x, w, labels, 30.0),
    ):
        nats, _ = loss()
        torch.autograd.grad(nats, x, retain_graph=True)
        with pytest.raises(RuntimeError, match="run the forward again"):
            torch.autograd.grad(nats, x)


def test_a_view_of_a_row_major_array_is_its_memory_and_keeps_it_alive():
    for x in (mx.arange(6.0).reshape(2, 3) + 1, mx.arange(4), mx.array(3.0), mx.zeros((0, 4))):
        (view,) = adapter_mlx.views(x)  # which evaluates
        assert view.ctypes.data == np.frombuffer(memoryview(x), np.uint8).ctypes.data
        assert (view.shape, str(view.dtype)) == (x.shape, str(x.dtype).removeprefix("mlx.core."))
    (view,) = adapter_mlx.views(mx.arange(1000.0) * 2)  # the only reference to the array
    mx.eval([mx.full((1000,), 7.0) for _ in range(50)])  # which would take its memory
    np.testing.assert_array_equal(view, np.arange(1000.0) * 2)


# -- along the sequence ----------------------------------------------------------------------------


def test_numbers_at_the_ends_of_float32_are_finite_and_nan_stays_in_its_row():
    q, k = draw(1, 4, 1, 3), draw(1, 4, 1, 3, seed=1)
    q[0, :3] *= np.array([1e-25, np.nan, 1e30], np.float32)[:, None, None]
    inputs = (q, k, -np.abs(draw(1, 4, 1, 1)), np.ones((1, 3), np.float32), None)
    (x, _), _ = REGRESSION.forward(*inputs, steps=20, keep=False, threads=1)
    assert np.isfinite(x).all(-1).ravel().tolist() == [True, False, False, True]
    q = 1e3 * np.ones((1, 40, 1, 4), np.float32)  # scores too large to exponentiate
    q[0, ::2] *= -1
    (out,), _ = ATTENTION.forward(q, q, q, lengths=None, window=None, keep=False, threads=1)
    np.testing.assert_allclose(out, q, rtol=1e-6)  # each sees only keys of its own sign
