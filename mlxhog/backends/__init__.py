"""Backends compute losses and gradients: each is one framework on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxhog.backends.gpu_share import GPUShare, limit_mps, relax_watchdog
from mlxhog.base import capabilities, darwin, machine
from mlxhog.base.workers import GPU_BACKENDS, one_backend, resolve_workers
from mlxhog.models.ops.kernels import resolve, uses_bf16_matmuls

if TYPE_CHECKING:
    from mlxhog.backends.backend import Backend

__all__ = ["create", "create_alone"]


def create(
    name: str, *, threads: int, kernels: str, share: GPUShare | None = None,
    dtype: str = "float32",
) -> Backend:  # fmt: skip
    """Start a backend by name; imports its framework.

    On a Mac the calling thread, which will compute, is kept off the efficiency cores from now on.

    The process may use `threads` of the CPU. `kernels` are one of `CHOICES` in
    `models/ops/kernels.py`; a share of None is that of a single program. With the `dtype`
    "bfloat16" `loss_and_grads` uses mixed precision (`models/ops/mixed.py`); all else is float32.
    With "auto" it does where native kernels are faster in it.

    Raises:
        ConfigError: kernels that the device cannot run.
        EnvironmentLacks: the framework or the device is missing, or has too little memory.
    """
    darwin.ask_for_performance_cores()
    share = GPUShare() if share is None else share
    framework, device = name.split(":")
    how: dict[str, Any] = {"threads": threads, "kernels": kernels, "share": share}
    how["bf16_matmuls"] = uses_bf16_matmuls(resolve(framework, kernels, device), dtype)
    if name in GPU_BACKENDS:
        relax_watchdog()
    if framework == "mlx":  # only processes that compute load one
        from mlxhog.backends.mlx import MLXBackend

        return MLXBackend(name, **how)
    if device == "mps":
        limit_mps(share)
    from mlxhog.backends.torch import TorchBackend

    return TorchBackend(name, **how)


def create_alone(word: str, native_params: int | None = None) -> Backend:
    """Start a backend, one of `BACKEND_NAMES`, that may use the whole machine; errors as above.

    It will generate text with a model of `native_params` parameters that has a native decoder: then
    "auto" on a Mac is the CPU where the native decoder is faster than the GPU. None otherwise.
    """
    here = machine.here()
    name = one_backend(word, here)
    if word == "auto" and name == "mlx:gpu" and native_params is not None:
        name = "mlx:cpu" if capabilities.load().decodes_on_cpu(native_params).ok else name
    (worker,) = resolve_workers(name, machine=here).workers
    return create(worker.backend, threads=worker.threads, kernels="auto")
