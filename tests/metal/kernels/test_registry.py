"""What holds for every kernel of the project."""

from __future__ import annotations

import numpy as np
import pytest

from mlxhog.metal.kernel import read_source
from mlxhog.metal.registry import KERNELS
from tests.pairs import each_of


@each_of("name", KERNELS)
def test_a_kernel_is_a_function_for_mlx_and_a_whole_kernel_for_pytorch(name: str) -> None:
    kernel = KERNELS[name]
    assert kernel.name == name
    assert f" {name}(" in read_source(kernel.header)
    whole = read_source(kernel.header.replace(".h", ".metal"))
    for instance in kernel.instances or ("",):
        own = f"{name}_{instance}".rstrip("_")
        assert f"[[kernel]] void {own}(" in whole or f'[[host_name("{own}")]]' in whole


PROMISES_BITS = sorted(name for name, kernel in KERNELS.items() if kernel.rtol == 0)


@each_of("name", PROMISES_BITS)
def test_a_kernel_that_promises_bits_forbids_metal_to_fuse_products_and_sums(name: str) -> None:
    pragma = "#pragma METAL fp contract(off)\n"
    text = read_source(KERNELS[name].header)
    assert text.index(pragma) < text.index(f" {name}(")


def test_a_gpu_that_fuses_all_the_same_is_allowed_a_few_units_in_the_last_place() -> None:
    kernel, exact = KERNELS["mlstm_out"], KERNELS["sgd_apply"]
    assert exact.allowed(emulated=True) == 0.0
    assert 0 < exact.allowed(emulated=False) <= 1e-6
    assert kernel.allowed(emulated=False) == kernel.allowed(emulated=True) == kernel.rtol


STREAMING = (
    "dense_axpy", "racy_axpy", "sgd_apply", "momentum_apply", "adam_apply", "adam_shared_apply",
    "muon_direction", "channel_scale_apply",
)  # fmt: skip


@each_of("name", STREAMING)
def test_bytes_per_element_are_those_of_a_launch_that_streams_its_arrays(name: str) -> None:
    kernel, n = KERNELS[name], 1 << 16
    launch = kernel.sample(np.random.default_rng(0), n)
    moved = sum(int(np.prod(shape)) * 4 for shape in launch.outputs.values())
    for argument in kernel.inputs:
        if not argument.scalar:
            moved += launch.inputs[argument.name].nbytes * (2 if argument.writes else 1)
    # Counters, factors and the ends of the arena come on top.
    assert kernel.bytes_per_element == pytest.approx(moved / n, rel=0.03)
