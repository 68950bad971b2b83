"""Every Metal kernel by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mlxhog.metal.kernel import Kernel
from mlxhog.metal.kernels import (
    adds,
    conv,
    mlstm,
    packed16,
    slstm,
    steps,
)

_FAMILIES = (
    adds.KERNELS,
    packed16.KERNELS,
    steps.KERNELS,
    mlstm.KERNELS,
    slstm.KERNELS,
    conv.KERNELS,
)

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {kernel.name: kernel for family in _FAMILIES for kernel in family}
)
