"""One way to load a checkpoint, timed in a fresh process; run by load_checkpoint.py.

    python benchmarks/language_models/load_programs.py PROGRAM DIRECTORY

Prints one JSON object: seconds from the path to weights whose every number has been read, and the
resident memory before (after all imports) and at its highest.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Timed = Callable[[], Any]


def safetensors_numpy(folder: Path) -> Timed:
    """The package's `load_file`, which reads every tensor into memory of its own."""
    from safetensors.numpy import load_file

    return lambda: load_file(folder / "model.safetensors")


def safetensors_torch(folder: Path) -> Timed:
    """The package's `load_file` for torch maps the file; a sum of each tensor reads it."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(1)

    def load() -> Any:
        tensors = load_file(folder / "model.safetensors")
        return tensors, [float(tensor.sum()) for tensor in tensors.values()]

    return load


def safetensors_torch_converted(folder: Path) -> Timed:
    """The package's `load_file` for torch, and each tensor converted to float32."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(1)

    def load() -> Any:
        held = load_file(folder / "model.safetensors")
        return {name: held.pop(name).float() for name in list(held)}

    return load


def ours_torch(folder: Path) -> Timed:
    """`formats.open` and a torch backend in float32, checked for numbers that are not finite."""
    return _backend("torch:cpu", folder)


def ours_torch_converted(folder: Path) -> Timed:
    """The same from 16-bit weights, which are converted."""
    return _backend("torch:cpu", folder)


def ours_mlx(folder: Path) -> Timed:
    """`formats.open` and an MLX backend, which copies."""
    return _backend("mlx:cpu", folder)


def _backend(name: str, folder: Path) -> Timed:
    from mlxhog import backends
    from mlxhog.checkpoint import formats

    backend = backends.create(name, threads=1, kernels="auto", cpu_blas="auto")

    def load() -> Any:
        opened = formats.open(folder)
        assert not backend.load(opened.config, opened.tensors)
        return backend

    return load


def resident() -> tuple[int, int]:
    """Resident bytes now, and at their highest.

    Linux's ru_maxrss is no use here: a new process begins with that of its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, most
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return highest, highest


def main() -> None:
    """Run the program that the command line names."""
    program, folder = sys.argv[1], Path(sys.argv[2])
    load = globals()[program](folder)
    before, _ = resident()
    start = time.perf_counter()
    weights = load()
    seconds = time.perf_counter() - start
    _, most = resident()
    print(json.dumps({"seconds": seconds, "before": before, "most": most}))
    del weights


if __name__ == "__main__":
    main()
