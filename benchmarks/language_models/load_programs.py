"""Ways to load a checkpoint, each timed in a fresh process; run by load_checkpoint.py.

The time runs from the path to weights whose every number has been read; memory counts from what
the imports need.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.machine import resident

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


@dataclass(frozen=True)
class Loaded:
    """Seconds from the path to weights, and resident bytes before and at their highest."""

    seconds: float
    before: int
    most: int


def loaded(program: str, folder: Path, threads: int) -> Loaded:
    """Load by one of the programs; in a process of its own, with one thread."""
    load = globals()[program](folder)
    before, _ = resident()
    start = time.perf_counter()
    weights = load()
    seconds = time.perf_counter() - start
    _, most = resident()
    del weights
    return Loaded(seconds, before, most)
