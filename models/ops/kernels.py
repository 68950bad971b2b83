"""The choice among the eager, native and Metal implementations of the operators of models."""

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import cast

from mlxhog.errors import ConfigError
from mlxhog.models.ops.operators import Ops

CHOICES = ("auto", "eager", "native", "metal", "metal-emulated")

MODULES = {
    ("torch", "eager"): "mlxhog.models.ops.eager.ops_torch",
    ("mlx", "eager"): "mlxhog.models.ops.eager.ops_mlx",
    ("torch", "native"): "mlxhog.models.ops.native.adapter_torch",
    ("mlx", "native"): "mlxhog.models.ops.native.adapter_mlx",
}
ENGINES = {
    ("torch", "metal"): "mps",
    ("mlx", "metal"): "mlx",
    ("torch", "metal-emulated"): "emulated",
    ("mlx", "metal-emulated"): "emulated",
}


def choose(
    framework: str, kernels: str, device: str, *, eager: frozenset[str] = frozenset()
) -> Ops:
    """Return the operators that `resolve` chooses; those named in `eager` without Metal kernels.

    Raises:
        ConfigError: as of `resolve`.
    """
    kernels = resolve(framework, kernels, device)
    if (framework, kernels) in ENGINES:
        return _metal(framework, ENGINES[framework, kernels], eager)
    return cast(Ops, importlib.import_module(MODULES[framework, kernels]).OPS)


def resolve(framework: str, kernels: str, device: str, *, metal_verified: bool = False) -> str:
    """Resolve "auto" for a "cpu", "gpu" or "mps": return one of `CHOICES` other than "auto".

    "eager" are the framework's own operations, on every device; "native" the C++ kernels, on a
    CPU; "metal" the Metal kernels, on an Apple GPU; "metal-emulated" their source run on the CPU,
    for tests. "auto" is native on a CPU, metal if it is verified
    (`CapabilityRecord.model_kernels`), else eager.

    Raises:
        ConfigError: `kernels` is unknown, or does not support that device.
    """
    if kernels not in CHOICES:
        raise ConfigError(f"kernels is {kernels!r}; choose one of {', '.join(CHOICES)}")
    on_cpu = device == "cpu"
    if kernels == "auto":
        if on_cpu:
            return "native"
        return "metal" if metal_verified else "eager"
    if kernels != "eager" and (kernels == "metal") == on_cpu:
        raise ConfigError(
            f"kernels is {kernels!r}, which {framework}:{device} cannot run; use auto, which "
            "gives each worker what its device can run, or other workers"
        )
    return kernels


def uses_bf16_matmuls(kernels: str, dtype: str) -> bool:
    """Whether gradients use bf16 matmuls; with "auto" where native kernels are faster in bf16."""
    if dtype != "auto" or kernels != "native":
        return dtype == "bfloat16"
    from mlxhog._native import ops  # only processes that compute load it

    return ops.bfloat16_kernel() in ("amx", "avx512bf16")


@lru_cache
def _metal(framework: str, engine_name: str, eager: frozenset[str]) -> Ops:
    from mlxhog.metal import engines  # only processes that compute load it

    return metal_ops(framework)(engines.create(engine_name), eager)


def metal_ops(framework: str) -> Callable[..., Ops]:
    """Return the class of a framework's eager operators with Metal kernels in front."""
    from mlxhog.models.ops.metal.cells import MetalCells

    return type("MetalOps", (MetalCells, type(choose(framework, "eager", "cpu"))), {})
