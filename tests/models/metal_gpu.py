"""The Metal ops as on an Apple GPU, whose Metal is stood in for."""

from typing import Any

import mlx.core as mx
import pytest

from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.metal.engine_torch import MPSEngine
from mlxhog.metal.registry import KERNELS
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.metal import ops_mlx as metal_mlx
from mlxhog.models.ops.metal import ops_torch as metal_torch
from tests.metal.fake_gpu import FakeMLX, FakeMPS


def kernels_of_a_gpu(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[metal_mlx.MetalOps | metal_torch.MetalOps, list[Any]]:
    """The ops, computed by the host shim, and the launches they make."""
    emulated = choose(framework, "metal-emulated", "cpu").engine
    if framework == "mlx":
        mlx = FakeMLX(dict(KERNELS), emulated).install(monkeypatch)
        return metal_mlx.MetalOps(MLXEngine()), mlx.calls
    mps = FakeMPS(dict(KERNELS), emulated).install(monkeypatch)
    return metal_torch.MetalOps(MPSEngine("cpu")), mps.calls


def lazy_kernels(monkeypatch: pytest.MonkeyPatch) -> tuple[metal_mlx.MetalOps, list[str]]:
    """MLX's ops whose launches only have shapes, as in a trace, and the names of those made."""
    launched: list[str] = []

    def lazy_kernel(*, name: str, **_: Any) -> Any:
        def call(*, inputs: Any, output_shapes: Any, output_dtypes: Any, **_: Any) -> Any:
            launched.append(name)
            pairs = zip(output_shapes, output_dtypes, strict=True)
            return [mx.zeros(shape, dtype) + inputs[0].sum() for shape, dtype in pairs]

        return call

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.fast, "metal_kernel", lazy_kernel)
    return metal_mlx.MetalOps(MLXEngine()), launched
