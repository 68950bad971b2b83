"""The operators with Metal kernels as on an Apple GPU, whose Metal is stood in for."""

from unittest import mock

import mlx.core as mx
import pytest
import torch

from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.models.ops import arrays_torch
from mlxhog.models.ops.native import adapter_mlx
from tests.backends.test_self_check import METAL_OPS
from tests.metal.test_engines import fakes
from tests.models.operators import conv, mlstm, slstm
from tests.models.twins import TWINS, Twin
from tools.counts import primitives

CASES = {  # and the number of launches of a gradient
    "mlstm": (mlstm(11), 9),
    "slstm": (slstm(2, 9, 3, 4, packed=True), 2),
    "conv": (conv(2, 9, 6, 4, packed=True), 5),
}
frameworks = pytest.mark.parametrize("framework", ["torch", "mlx"])


@frameworks
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_the_engine_gets_the_arrays_of_the_framework_itself(framework, name, monkeypatch):
    (case, count), (fake, engine) = CASES[name], fakes(framework, monkeypatch)

    class OnGPU(Twin):
        ops = METAL_OPS[framework](engine)

    twin = OnGPU(framework, "metal")
    case.check(twin)
    fake.calls.clear()
    twin.op_grads(lambda ops, x: case(ops, x | twin.array(case.fixed))[0].sum(), case.inputs)
    assert len(fake.calls) == count


def lazy_kernels(monkeypatch):
    """MLX's ops whose launches only have shapes, as in a trace, and the names of those made."""
    launched = []

    def lazy_kernel(*, name, **_):
        def call(*, inputs, output_shapes, output_dtypes, **_):
            launched.append(name)
            pairs = zip(output_shapes, output_dtypes, strict=True)
            used = sum(x.astype(mx.float32).sum() for x in inputs)
            return [(mx.zeros(shape) + used).astype(dtype) for shape, dtype in pairs]

        return call

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.fast, "metal_kernel", lazy_kernel)
    return METAL_OPS["mlx"](MLXEngine()), launched


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
def test_under_mlx_a_cell_and_its_gradient_are_traced_without_evaluating(name, monkeypatch):
    (case, count), (ops, launched) = CASES[name], lazy_kernels(monkeypatch)
    fixed = {key: x for key, x in case.fixed.items() if key != "reset_mask"}

    def loss(x):
        return case(ops, x | fixed)[0].sum()

    # mx.compile calls the function once with placeholders, which nothing can evaluate. On a CPU the
    # results would need a library by g++, which another test may write in the same folder.
    gradient = mx.compile(mx.grad(loss))
    for _ in range(2):
        gradient({key: mx.array(x) for key, x in case.inputs.items()})
    assert len(launched) - len(set(launched)) == count, "each has run on zeros before"


def saved_by(call):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        call()
    return kept


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernels", ["metal", "native"])
def test_torch_calls_no_function_of_autograd_where_no_input_needs_a_gradient(
    name, kernels, monkeypatch
):
    (case, _), twin = CASES[name], TWINS["torch-native"]
    ops = METAL_OPS["torch"](fakes("torch", monkeypatch)[1]) if kernels == "metal" else twin.ops
    inputs, fixed = twin.array(case.inputs), twin.array(case.fixed)
    called = mock.Mock(wraps=arrays_torch._CustomOp.apply)
    monkeypatch.setattr(arrays_torch._CustomOp, "apply", called)
    learned = inputs | {key: x.requires_grad_() for key, x in list(inputs.items())[:1]}
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not saved_by(lambda: case(ops, learned | fixed))
    constants = {key: x.detach() for key, x in inputs.items()}
    assert not saved_by(lambda: case(ops, constants | fixed))
    called.assert_not_called()
    assert saved_by(lambda: case(ops, learned | fixed))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernels", ["metal", "native"])
def test_mlx_keeps_nothing_without_a_gradient(name, kernels, monkeypatch):
    (case, _), twin = CASES[name], TWINS["mlx-native"]
    ops = METAL_OPS["mlx"](fakes("mlx", monkeypatch)[1]) if kernels == "metal" else twin.ops
    arrays = twin.array(case.inputs) | twin.array(case.fixed)

    def kept():
        y = case(ops, arrays)[0]
        return "CustomTransforms" in primitives([y])

    assert kept()
    with adapter_mlx.without_gradient():
        assert not kept()
