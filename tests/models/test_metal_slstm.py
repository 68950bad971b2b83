"""The sLSTM cell on its Metal kernels: what comes on top of being the cell (test_slstm_cell.py)."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.errors import ShapeError
from mlxhog.models.ops.kernels import choose
from tests.models.metal_gpu import kernels_of_a_gpu, lazy_kernels
from tests.models.slstm import slstm_inputs
from tests.models.twins import Twin
from tests.tolerances import SLSTM_F32, SLSTM_GRADIENT_F32, assert_close

REFERENCE: dict[str, Twin] = {"torch": Twin("torch", "reference"), "mlx": Twin("mlx", "reference")}
EMULATED: dict[str, Twin] = {
    "torch": Twin("torch", "metal-emulated"),
    "mlx": Twin("mlx", "metal-emulated"),
}
frameworks = pytest.mark.parametrize("framework", REFERENCE)


@frameworks
def test_on_a_gpu_the_engine_gets_the_arrays_of_the_framework_itself(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, twin = slstm_inputs(2, 7, 3, 4), REFERENCE[framework]
    ops, launches = kernels_of_a_gpu(framework, monkeypatch)
    starts = twin.array(np.array([[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1, 0]], bool))

    def scalar(ops: Any, p: Any) -> Any:
        h, (h_last, c, _, _) = ops.slstm_cell(*p.values(), starts=starts)
        return (h**2).sum() + (h_last**3).sum() + c.sum()

    expected = twin.op_grads(scalar, inputs)
    result = twin.op_grads(lambda _, p: scalar(ops, p), inputs)
    assert len(launches) == 2
    for name in inputs:
        assert_close(result[name], expected[name], SLSTM_GRADIENT_F32, label=name)


def test_under_mlx_the_cell_and_its_gradient_are_traced_without_evaluating(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ops, launched = lazy_kernels(monkeypatch)

    def loss(*inputs: mx.array) -> mx.array:
        h, (_, c, _, _) = ops.slstm_cell(*inputs)
        return h.sum() + c.sum()

    # mx.compile calls the function once with placeholders, which nothing can evaluate.
    gradient = mx.compile(mx.grad(loss, argnums=tuple(range(6))))
    inputs = [mx.array(x) for x in slstm_inputs(1, 6, 2, 3).values()]
    for _ in range(2):
        mx.eval(gradient(*inputs))
    assert launched == ["mlxhog_slstm_forward", "mlxhog_slstm_backward"]


@frameworks
def test_a_head_wider_than_a_group_of_threads_is_refused_with_the_limit(framework: str) -> None:
    inputs = slstm_inputs(1, 1, 1, 1025)
    with pytest.raises(ShapeError, match="heads of 1025 units, .* at most 1024; use more heads"):
        EMULATED[framework].op("slstm_cell", *inputs.values())


def test_inputs_of_16_bits_are_computed_in_float32() -> None:
    inputs = [value.astype(np.float16) for value in slstm_inputs(1, 5, 2, 3).values()]
    expected, _ = REFERENCE["torch"].op("slstm_cell", *inputs)
    h, _ = choose("torch", "metal-emulated", "cpu").slstm_cell(*map(torch.tensor, inputs))
    assert h.dtype == torch.float32
    assert_close(h, expected, SLSTM_F32)
    h, _ = choose("mlx", "metal-emulated", "cpu").slstm_cell(*map(mx.array, inputs))
    assert h.dtype == mx.float32
    assert_close(np.array(h), expected, SLSTM_F32)
