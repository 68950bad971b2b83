"""The operators are chosen in one place, by kind and device."""

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models.ops.kernels import choose, resolve
from mlxhog.models.ops.reference import ops_mlx, ops_torch
from tests.pairs import each_of


@each_of(
    ("framework", "kernels", "device", "message"),
    [
        ("mlx", "native", "gpu", "'native', which mlx:gpu cannot run; use auto"),
        ("torch", "metal", "cpu", "'metal', which torch:cpu cannot run; use auto"),
        ("torch", "fast", "cpu", "'fast'; choose one of auto, reference, native"),
    ],
)
def test_kernels_that_a_device_cannot_run_are_refused(framework, kernels, device, message):
    with pytest.raises(ConfigError, match=message):
        choose(framework, kernels, device)


def test_auto_is_native_on_a_cpu_and_metal_on_a_gpu_where_the_kernels_are_verified():
    for framework, plain, gpu in (("torch", ops_torch.OPS, "mps"), ("mlx", ops_mlx.OPS, "gpu")):
        assert choose(framework, "auto", gpu) is choose(framework, "reference", "cpu") is plain
        assert resolve(framework, "auto", gpu, metal_verified=True) == "metal"
        assert resolve(framework, "reference", gpu, metal_verified=True) == "reference"
        assert resolve(framework, "auto", "cpu", metal_verified=True) == "native"
