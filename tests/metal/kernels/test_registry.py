"""What holds for every kernel of the project."""

import re

import pytest

from mlxhog.metal.kernel import amalgamated_source, read_source
from mlxhog.metal.registry import KERNELS, instances
from tests.pairs import each_of
from tools import dump


@pytest.mark.slow
def test_the_text_of_every_kernel_is_that_of_mlx_but_for_its_name():
    """MLX's name for a kernel has the types of its arguments."""
    for kernel, instance in instances():
        name, text = kernel.entry(instance), dump.mlx_text(kernel, instance)
        own = re.sub(rf"\bcustom_kernel_{name}\w*\(", f"{name}(", text)
        own = own.replace(
            "bfloat16_t", "bfloat"
        )  # MLX's own name, before Metal 3.1 of its own type
        assert own.split() == amalgamated_source(kernel, instance).split(), name


PROMISES_BITS = sorted(name for name, kernel in KERNELS.items() if kernel.rtol == 0)


@each_of("name", PROMISES_BITS)
def test_a_kernel_that_promises_bits_forbids_metal_to_fuse_products_and_sums(name):
    pragma = "#pragma METAL fp contract(off)\n"
    text = read_source(KERNELS[name].header)
    assert text.index(pragma) < text.index(f" {name}(")
