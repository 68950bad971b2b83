"""Every Metal kernel by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mlxhog.metal.kernel import Kernel
from mlxhog.metal.kernels import (
    adds,
    conv,
    mlstm,
    mlstm_backward,
    packed16,
    reduce,
    row_steps,
    slstm,
    steps,
    versions,
)

_FAMILIES = (
    adds.KERNELS,
    packed16.KERNELS,
    reduce.KERNELS,
    steps.KERNELS,
    row_steps.KERNELS,
    versions.KERNELS,
    mlstm.KERNELS,
    mlstm_backward.KERNELS,
    slstm.KERNELS,
    conv.KERNELS,
)

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {kernel.name: kernel for family in _FAMILIES for kernel in family}
)
