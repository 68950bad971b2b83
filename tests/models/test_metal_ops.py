"""Models and cells on the emulated Metal kernels compute what the plain operators do."""

import mlx.core as mx
import numpy as np
import pytest

from mlxhog.errors import ShapeError
from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.metal.engine_torch import MPSEngine
from mlxhog.metal.registry import KERNELS
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.metal import ops_mlx as metal_mlx
from mlxhog.models.ops.metal import ops_torch as metal_torch
from tests.metal.fake_gpu import FakeMLX, FakeMPS
from tests.models.sample import cell_inputs, slstm_inputs
from tests.models.twins import Twin
from tests.tolerances import (
    GRADIENT_ANY_F32,
    OP_GRADIENT_F32,
    SLSTM_GRADIENT_F32,
    assert_close,
)

EMULATED = {name: Twin(name, "metal-emulated") for name in ("torch", "mlx")}
REFERENCE = {name: Twin(name, "reference") for name in EMULATED}
frameworks = pytest.mark.parametrize("framework", EMULATED)


# -- as on an Apple GPU, whose Metal is stood in for -----------------------------------------------


def kernels_of_a_gpu(framework, monkeypatch):
    """The ops, computed by the host shim, and the launches they make."""
    emulated = choose(framework, "metal-emulated", "cpu").engine
    if framework == "mlx":
        mlx = FakeMLX(dict(KERNELS), emulated).install(monkeypatch)
        return metal_mlx.MetalOps(MLXEngine()), mlx.calls
    mps = FakeMPS(dict(KERNELS), emulated).install(monkeypatch)
    return metal_torch.MetalOps(MPSEngine("cpu")), mps.calls


def lazy_kernels(monkeypatch):
    """MLX's ops whose launches only have shapes, as in a trace, and the names of those made."""
    launched = []

    def lazy_kernel(*, name, **_):
        def call(*, inputs, output_shapes, output_dtypes, **_):
            launched.append(name)
            pairs = zip(output_shapes, output_dtypes, strict=True)
            return [mx.zeros(shape, dtype) + inputs[0].sum() for shape, dtype in pairs]

        return call

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.fast, "metal_kernel", lazy_kernel)
    return metal_mlx.MetalOps(MLXEngine()), launched


def conv_inputs():
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 9, 6), "w": (6, 1, 4), "b": (6,), "state": (2, 3, 6)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


STARTS = np.array([[0, 0, 1, 0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1, 0, 0, 0]], bool)
CELLS = {  # inputs, call, number of launches, tolerance of the gradients
    "mlstm": (
        cell_inputs(2, 11, 3, 4, 6, seed=4),
        lambda ops, p, starts: ops.mlstm_cell(*p.values(), chunk_size=4, eps=1e-6),
        7,
        GRADIENT_ANY_F32,
    ),
    "slstm": (
        slstm_inputs(2, 9, 3, 4),
        lambda ops, p, starts: ops.slstm_cell(*p.values(), starts=starts),
        2,
        SLSTM_GRADIENT_F32,
    ),
    "conv": (
        conv_inputs(),
        lambda ops, p, starts: ops.causal_conv(**p, starts=starts, silu=True),
        5,
        OP_GRADIENT_F32,
    ),
}


def total(h, last):
    """A loss of the output and of the first part of the state."""
    return (h**2).sum() + ((last[0] if isinstance(last, tuple) else last) ** 3).sum()


@frameworks
@pytest.mark.parametrize("cell", CELLS)
def test_on_a_gpu_the_engine_gets_the_arrays_of_the_framework_itself(framework, cell, monkeypatch):
    inputs, call, count, tolerance = CELLS[cell]
    twin, (ops, launches) = REFERENCE[framework], kernels_of_a_gpu(framework, monkeypatch)
    starts = twin.array(STARTS)
    expected = twin.op_grads(lambda plain, p: total(*call(plain, p, starts)), inputs)
    result = twin.op_grads(lambda _, p: total(*call(ops, p, starts)), inputs)
    assert len(launches) == count
    for name in inputs:
        assert_close(result[name], expected[name], tolerance, label=name)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["mlstm", "slstm"])
def test_under_mlx_a_cell_and_its_gradient_are_traced_without_evaluating(cell, monkeypatch):
    inputs, call, count, _ = CELLS[cell]
    ops, launched = lazy_kernels(monkeypatch)

    def loss(*values):
        return total(*call(ops, dict(zip(inputs, values, strict=True)), None))

    # mx.compile calls the function once with placeholders, which nothing can evaluate.
    gradient = mx.compile(mx.grad(loss, argnums=tuple(range(len(inputs)))))
    for _ in range(2):
        mx.eval(gradient(*map(mx.array, inputs.values())))
    assert len(launched) == count


@pytest.mark.slow
@frameworks
def test_a_head_wider_than_a_group_of_threads_is_refused_with_the_limit(framework):
    inputs = slstm_inputs(1, 1, 1, 1025)
    with pytest.raises(ShapeError, match="heads of 1025 units, .* at most 1024; use more heads"):
        EMULATED[framework].op("slstm_cell", *inputs.values())
