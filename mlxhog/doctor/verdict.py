"""What follows for a run on this machine: what `auto` will choose, and what may be asked for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mlxhog.backends.kernel_choice import doctors_refusal, of_backend, why_not_metal
from mlxhog.config.quantities import format_count
from mlxhog.errors import EnvironmentLacks
from mlxhog.machine.machine import Machine
from mlxhog.machine.verdicts import Verdicts
from mlxhog.machine.workers import BACKENDS, GPU_BACKENDS, missing, resolve_workers

LIVE = ("mlx:gpu", "torch:cpu")
"""Backends that can compute with host memory itself."""


def conclude(found: Verdicts, machine: Machine) -> dict[str, Any]:
    """Say what the options that look at a record will do with this one.

    Args:
        found: the record, as a run would load it.
        machine: this one.

    Returns:
        For `--workers auto`, `--gpu-write auto` and, for each backend, `--kernels auto` the choice
        and why; for `--read live` and
        `--gpu-write metal` whether each backend may, and why.
    """
    workers, backends = _workers(found, machine)
    here = [name for name in BACKENDS if missing(name, machine) is None]
    return {
        "workers": workers,
        "kernels": {name: _kernels(found, name) for name in here},
        "gpu_write": _gpu_write(found, backends),
        "gpu_write_metal": {name: _metal(found, name) for name in here if name in GPU_BACKENDS},
        "read_live": {name: asdict(found.live_read(name)) for name in here if name in LIVE},
    }


def _workers(found: Verdicts, machine: Machine) -> tuple[dict[str, str], list[str]]:
    try:
        chosen = resolve_workers("auto", machine=machine, tokens_per_s=found.tokens_per_s)
    except EnvironmentLacks as error:
        return {"auto": "", "why": str(error)}, []
    backends = [worker.backend for worker in chosen.workers]
    speeds = ", ".join(
        f"{name} {format_count(speed)} tok/s" for name, speed in found.tokens_per_s.items()
    )
    why = "; ".join([f"one thread of each: {speeds}" if speeds else "not measured", *chosen.notes])
    return {"auto": ",".join(backends), "why": why}, backends


def _kernels(found: Verdicts, name: str) -> dict[str, str]:
    """What `--kernels auto` does with workers of a backend."""
    chosen = of_backend("auto", name, found)
    if name in GPU_BACKENDS:
        return {"auto": chosen, "why": found.model_kernels(name).reason}
    why = "our C++ kernels" if chosen == "native" else "our C++ kernels are not built"
    return {"auto": chosen, "why": why}


def _gpu_write(found: Verdicts, backends: list[str]) -> dict[str, str]:
    """What `--gpu-write auto` does with the mix of `--workers auto`."""
    refusal = why_not_metal(backends, found)
    if refusal is None:
        return {"auto": "metal", "why": found.gpu_write(backends).reason}
    return {"auto": "cpu", "why": refusal}


def _metal(found: Verdicts, name: str) -> dict[str, Any]:
    """Whether one worker of a kind, alone, may add its own steps."""
    refusal = doctors_refusal([name], found)
    return {"ok": refusal is None, "reason": refusal or found.gpu_write([name]).reason}
