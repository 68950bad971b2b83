"""The choice among the plain, native and Metal forms of the operators of models."""

import importlib
import importlib.util
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.metal import engine
from mlxhog.models.ops.arrays import Arrays
from mlxhog.models.ops.operators import Ops

CHOICES = ("auto", "reference", "native", "metal", "metal-emulated")

MODULES = {
    ("torch", "reference"): "mlxhog.models.ops.reference.ops_torch",
    ("mlx", "reference"): "mlxhog.models.ops.reference.ops_mlx",
    ("torch", "native"): "mlxhog.models.ops.native.adapter_torch",
    ("mlx", "native"): "mlxhog.models.ops.native.adapter_mlx",
}

ARRAYS = {"torch": "mlxhog.models.ops.arrays_torch", "mlx": "mlxhog.models.ops.arrays_mlx"}
METAL = {"torch": "mlxhog.models.ops.metal.ops_torch", "mlx": "mlxhog.models.ops.metal.ops_mlx"}
ENGINES = {
    ("torch", "metal"): "mps",
    ("mlx", "metal"): "mlx",
    ("torch", "metal-emulated"): "emulated:mps",
    ("mlx", "metal-emulated"): "emulated:mlx",
}


def arrays(framework: str) -> Arrays[Any]:
    """Return the array functions of "torch" or "mlx"."""
    return cast(Arrays[Any], _load(ARRAYS[framework]))


def choose(
    framework: str,
    kernels: str,
    device: str,
    *,
    plain: frozenset[str] = frozenset(),
    guarded: bool = False,
) -> Ops:
    """Return the ops of a framework; arguments and errors as `resolve`.

    Args:
        framework: see `resolve`.
        kernels: see `resolve`.
        device: see `resolve`.
        plain: names of operators whose Metal kernels are not used.
        guarded: see `PlainForm`.
    """
    kernels = resolve(framework, kernels, device)
    if (framework, kernels) in ENGINES:
        return _metal(framework, ENGINES[framework, kernels], plain, guarded)
    module = MODULES[framework, kernels]
    return _guarded(module) if guarded else cast(Ops, _load(module).OPS)


def resolve(
    framework: str,
    kernels: str,
    device: str,
    *,
    metal_verified: bool = False,
    weights: str = "float32",
) -> str:
    """Resolve "auto" for a device: return one of `CHOICES` other than "auto".

    Args:
        framework: "torch" or "mlx".
        kernels: "reference" for the plain ops of the framework, which run on every device;
            "native" for the C++ kernels, which run on the CPU; "metal" for the Metal kernels, on an
            Apple GPU; "metal-emulated" for their source run on the CPU by the host shim, for tests;
            "auto" for native on a CPU where it is built, for metal on a GPU where it may be used,
            else for reference.
        device: device of the arrays: "cpu", "gpu" or "mps".
        metal_verified: whether "auto" may use Metal kernels, see `Verdicts.model_kernels`.
        weights: type of the matrices in products that are not quantised. The native kernels only
            support float32, so with another type "auto" is reference on a CPU.

    Raises:
        ConfigError: `kernels` is another word, or does not support that device or these weights.
        EnvironmentLacks: `kernels` is "native", which is not built.
    """
    if kernels not in CHOICES:
        raise ConfigError(f"kernels is {kernels!r}; choose one of {', '.join(CHOICES)}")
    if kernels != "reference" and kernels != "auto" and (kernels == "metal") == (device == "cpu"):
        raise ConfigError(
            f"kernels is {kernels!r}, which {framework}:{device} cannot run; use auto, which "
            "gives each worker what its device can run, or other workers"
        )
    native = MODULES[framework, "native"]
    if weights != "float32" and device == "cpu":
        if kernels == "native":
            raise ConfigError(
                f"kernels is 'native', which cannot compute with {weights} weights; use auto, or "
                "float32"
            )
        return "reference" if kernels == "auto" else kernels
    if kernels == "auto" and device == "cpu":
        return "native" if _exists(native) else "reference"
    if kernels == "auto":
        return "metal" if metal_verified else "reference"
    if kernels == "native" and not _exists(native):
        raise EnvironmentLacks(f"{native} is not built; set kernels to auto or reference")
    return kernels


@lru_cache
def _metal(framework: str, engine_name: str, plain: frozenset[str], guarded: bool) -> Ops:
    form = _load(METAL[framework]).MetalForm(engine.create(engine_name), plain)
    form.guarded = guarded
    return Ops(form)


@lru_cache
def _guarded(module: str) -> Ops:
    form = type(_load(module).OPS.form)()
    form.guarded = True
    return Ops(form)


@lru_cache
def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@lru_cache
def _load(module: str) -> ModuleType:
    return importlib.import_module(module)
