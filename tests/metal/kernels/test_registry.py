"""What holds for every kernel of the project."""

from __future__ import annotations

import numpy as np
import pytest

from mlxhog.metal import source
from mlxhog.metal.registry import KERNELS


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_a_function_for_mlx_and_a_whole_kernel_for_pytorch(name: str) -> None:
    kernel = KERNELS[name]
    assert kernel.name == name
    assert f" {name}(" in source.read(kernel.header)
    whole = source.read(kernel.header.replace(".h", ".metal"))
    for instance in kernel.instances or ("",):
        assert f"[[kernel]] void {name}_{instance}".rstrip("_") + "(" in whole


STREAMING = (
    "dense_axpy", "racy_axpy", "sgd_apply", "momentum_apply", "adam_apply", "adam_shared_apply",
    "channel_scale_apply", "sumsq_partial", "sumsq_final", "nonfinite_count", "packed16_add",
)  # fmt: skip


@pytest.mark.parametrize("name", STREAMING)
def test_bytes_per_element_are_those_of_a_launch_that_streams_its_arrays(name: str) -> None:
    kernel, n = KERNELS[name], 1 << 16
    launch = kernel.sample(np.random.default_rng(0), n)
    moved = sum(int(np.prod(shape)) * 4 for shape in launch.outputs.values())
    for argument in kernel.inputs:
        if not argument.scalar:
            moved += launch.inputs[argument.name].nbytes * (2 if argument.writes else 1)
    # Counters, factors and the ends of the arena come on top.
    assert kernel.bytes_per_element == pytest.approx(moved / n, rel=0.03)
