"""What follows for a run on this machine: what `auto` will choose, and what may be asked for."""

from __future__ import annotations

from typing import Any

from mlxhog import mix
from mlxhog.errors import EnvironmentLacks
from mlxhog.machine import Machine
from mlxhog.mix import BACKENDS, GPU_BACKENDS
from mlxhog.quantities import format_count
from mlxhog.verdicts import Verdicts

ENGINES = {"mlx:gpu": "mlx", "torch:mps": "mps"}
LIVE = ("mlx:gpu", "torch:cpu")
"""Backends that can compute with host memory itself."""


def conclude(found: Verdicts, machine: Machine) -> dict[str, Any]:
    """Say what the options that look at a record will do with this one.

    Args:
        found: the record, as a run would load it.
        machine: this one.

    Returns:
        For `--workers auto` and `--gpu-write auto` the choice and why; for `--read live` and
        `--gpu-write metal` whether each backend may, and why.
    """
    workers, backends = _workers(found, machine)
    here = [name for name in BACKENDS if mix.missing(name, machine) is None]
    return {
        "workers": workers,
        "gpu_write": _gpu_write(found, backends),
        "gpu_write_metal": {
            name: _both(found.gpu_write([name]), found.kernels(ENGINES[name]))
            for name in here
            if name in GPU_BACKENDS
        },
        "read_live": {name: _both(found.live_read(name)) for name in here if name in LIVE},
    }


def _workers(found: Verdicts, machine: Machine) -> tuple[dict[str, str], list[str]]:
    try:
        chosen = mix.resolve("auto", machine=machine, tokens_per_s=found.tokens_per_s)
    except EnvironmentLacks as error:
        return {"auto": "", "why": str(error)}, []
    backends = [worker.backend for worker in chosen.workers]
    speeds = ", ".join(
        f"{name} {format_count(speed)} tok/s" for name, speed in found.tokens_per_s.items()
    )
    why = "; ".join([f"one thread of each: {speeds}" if speeds else "not measured", *chosen.notes])
    return {"auto": ",".join(backends), "why": why}, backends


def _gpu_write(found: Verdicts, backends: list[str]) -> dict[str, str]:
    """The rule of `--gpu-write auto`, for the mix of `--workers auto`."""
    on_gpu = [name for name in backends if name in GPU_BACKENDS]
    if not on_gpu:
        return {"auto": "cpu", "why": "no worker uses a GPU; emulated rows permit nothing"}
    if len(on_gpu) < len(backends):
        return {"auto": "cpu", "why": "CPU workers add to the same parameters"}
    verdict = _both(
        found.gpu_write(backends), *(found.kernels(ENGINES[name]) for name in sorted(set(on_gpu)))
    )
    return {"auto": "metal" if verdict["ok"] else "cpu", "why": verdict["reason"]}


def _both(*needed: Any) -> dict[str, Any]:
    """The first verdict that says no, or the first of all."""
    verdict = next((each for each in needed if not each.ok), needed[0])
    return {"ok": verdict.ok, "reason": verdict.reason}
