"""Every Metal kernel by name, and in each form that is dispatched."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from mlxhog.metal.kernel import MetalKernel
from mlxhog.metal.kernels import adds, conv, mlstm, slstm

KERNELS: Mapping[str, MetalKernel] = MappingProxyType(
    {kernel.name: kernel for family in (adds, mlstm, slstm, conv) for kernel in family.KERNELS}
)


def instances() -> Iterator[tuple[MetalKernel, str]]:
    """Yield every kernel with each of its instances, "" if it has none."""
    for kernel in KERNELS.values():
        for variant in (kernel, *kernel.variants):
            for instance in variant.instances or ("",):
                yield variant, instance
