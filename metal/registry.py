"""Every Metal kernel by name, and in each form that is dispatched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from mlxhog.metal.kernel import Kernel
from mlxhog.metal.kernels import (
    adds,
    conv,
    mlstm,
    slstm,
)

_FAMILIES = (
    adds.KERNELS,
    mlstm.KERNELS,
    slstm.KERNELS,
    conv.KERNELS,
)

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {kernel.name: kernel for family in _FAMILIES for kernel in family}
)


def instances() -> Iterator[tuple[Kernel, str]]:
    """Yield every kernel with each of its instances, "" if it has none."""
    for kernel in KERNELS.values():
        for instance in kernel.instances or ("",):
            yield kernel, instance
