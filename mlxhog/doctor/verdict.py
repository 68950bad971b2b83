"""What follows from a record for a run on this machine, and keeping the record for later runs.

`mlxhog.machine.verdicts` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxhog.backends.kernel_choice import doctors_refusal, of_backend, why_not_metal
from mlxhog.config.quantities import format_count
from mlxhog.errors import EnvironmentLacks
from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file
from mlxhog.machine.cache import user_cache_directory
from mlxhog.machine.machine import Machine
from mlxhog.machine.verdicts import Identity, Verdicts
from mlxhog.machine.workers import BACKENDS, GPU_BACKENDS, missing, resolve_workers

LIVE = ("mlx:gpu", "torch:cpu")
"""Backends that can compute with host memory itself."""


def conclude(verdicts: Verdicts, machine: Machine) -> dict[str, Any]:
    """Say what the options that look at a record will do with this one.

    Args:
        verdicts: the record, as a run would load it.
        machine: this one.

    Returns:
        For `--workers auto`, `--gpu-write auto` and, for each backend, `--kernels auto` the choice
        and why; for `--read live` and
        `--gpu-write metal` whether each backend may, and why.
    """
    workers, backends = _workers(verdicts, machine)
    here = [name for name in BACKENDS if missing(name, machine) is None]
    return {
        "workers": workers,
        "kernels": {name: _kernels(verdicts, name) for name in here},
        "gpu_write": _gpu_write(verdicts, backends),
        "gpu_write_metal": {name: _metal(verdicts, name) for name in here if name in GPU_BACKENDS},
        "read_live": {name: asdict(verdicts.live_read(name)) for name in here if name in LIVE},
    }


def _workers(verdicts: Verdicts, machine: Machine) -> tuple[dict[str, str], list[str]]:
    try:
        chosen = resolve_workers("auto", machine=machine, tokens_per_s=verdicts.tokens_per_s)
    except EnvironmentLacks as error:
        return {"auto": "", "why": str(error)}, []
    backends = [worker.backend for worker in chosen.workers]
    speeds = ", ".join(
        f"{name} {format_count(speed)} tok/s" for name, speed in verdicts.tokens_per_s.items()
    )
    why = "; ".join([f"one thread of each: {speeds}" if speeds else "not measured", *chosen.notes])
    return {"auto": ",".join(backends), "why": why}, backends


def _kernels(verdicts: Verdicts, name: str) -> dict[str, str]:
    """What `--kernels auto` does with workers of a backend."""
    chosen = of_backend("auto", name, verdicts)
    if name in GPU_BACKENDS:
        return {"auto": chosen, "why": verdicts.model_kernels(name).reason}
    why = "our C++ kernels" if chosen == "native" else "our C++ kernels are not built"
    return {"auto": chosen, "why": why}


def _gpu_write(verdicts: Verdicts, backends: list[str]) -> dict[str, str]:
    """What `--gpu-write auto` does with the mix of `--workers auto`."""
    refusal = why_not_metal(backends, verdicts)
    if refusal is None:
        return {"auto": "metal", "why": verdicts.gpu_write(backends).reason}
    return {"auto": "cpu", "why": refusal}


def _metal(verdicts: Verdicts, name: str) -> dict[str, Any]:
    """Whether one worker of a kind, alone, may add its own steps."""
    refusal = doctors_refusal([name], verdicts)
    return {"ok": refusal is None, "reason": refusal or verdicts.gpu_write([name]).reason}


# -- the record ------------------------------------------------------------------------------------


def save(record: Mapping[str, Any], identity: Identity, directory: Path | None = None) -> Path:
    """Replace the record of this machine; a reader sees the old one or the new one.

    Args:
        record: what to keep.
        identity: names the file.
        directory: where records lie; None is the user's cache directory.

    Raises:
        EnvironmentLacks: the directory cannot be written; the old record stands.
    """
    path = (directory or user_cache_directory()) / identity.file_name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, plain_json.dumps(record, indent=1) + b"\n")
    except OSError as error:
        raise EnvironmentLacks(
            f"the result cannot be kept in {path} ({error.strerror}), so no run will use it; "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return path
