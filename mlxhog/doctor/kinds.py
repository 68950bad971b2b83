"""Which writers, readers and Metal engines this machine has."""

from __future__ import annotations

from dataclasses import replace

from mlxhog.doctor.writers import Kind
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import missing

_HERE = "mlxhog.doctor."


def engines(machine: Machine) -> list[str]:
    """Names of the Metal engines: those of an Apple GPU, else the emulated ones."""
    if not machine.apple_gpu:
        return ["emulated:mlx", "emulated:mps"]
    names = {"mlx": "mlx:gpu", "mps": "torch:mps"}
    return [name for name, backend in names.items() if missing(backend, machine) is None]


def writers(machine: Machine, usable_engines: list[str]) -> list[Kind]:
    """Every writer that is present, the naive ones last.

    Args:
        machine: this one.
        usable_engines: those of `engines` that could be started.
    """
    kinds = [Kind("native", f"{_HERE}writers:native")]
    if missing("torch:cpu", machine) is None:
        kinds.append(Kind("torch:cpu", f"{_HERE}writers_torch:cpu"))
    if missing("mlx:cpu", machine) is None:
        kinds.append(Kind("mlx:cpu", f"{_HERE}writers_mlx:cpu"))
    kinds += [
        Kind(
            name if name.startswith("emulated:") else f"metal:{name}",
            f"{_HERE}writers_metal:MetalWriter",
            (name,),
            emulated=name.startswith("emulated:"),
            gpu=True,
        )
        for name in usable_engines
    ]
    kinds.append(Kind("naive:numpy", f"{_HERE}writers:NaiveWriter", naive=True))
    if missing("torch:cpu", machine) is None:
        kinds.append(Kind("naive:torch", f"{_HERE}writers_torch:NaiveWriter", naive=True))
    kinds += [
        replace(
            kind,
            name=f"naive:{kind.name}",
            factory=f"{_HERE}writers_metal:NaiveWriter",
            naive=True,
        )
        for kind in kinds
        if kind.gpu
    ]
    return kinds


def readers(machine: Machine) -> list[tuple[str, Kind]]:
    """Every ("snapshot" or "live", reader) that is present; a reader is named by its backend."""
    found = [("snapshot", Kind("native", f"{_HERE}readers:NativeReader"))]
    for backend in ("mlx:cpu", "torch:cpu", "mlx:gpu", "torch:mps"):
        framework, device = backend.split(":")
        if missing(backend, machine) is None:
            module = f"{_HERE}readers_{framework}"
            found.append(("snapshot", Kind(backend, f"{module}:SnapshotReader", (device,))))
            if backend in ("torch:cpu", "mlx:gpu"):  # the two that can alias host memory
                found.append(("live", Kind(backend, f"{module}:LiveReader")))
    return found
