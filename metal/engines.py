"""Engines that run Metal kernels, and the memory that a GPU shares with them.

Names that `create` knows:

    mlx         MLX on an Apple GPU             `engine_mlx.py`
    mps         PyTorch on an Apple GPU         `engine_torch.py`
    emulated    the emulator, which runs the text that both would compile   `emulator/engine.py`

Metal wraps host memory into a buffer only if it consists of whole pages, and MLX counts an array's
elements in 31 bits. So a whole segment of an arena, with its padding, is wrapped as one flat array
(`wrappable`); parameters are slices of it.
Sources: MLX pull request 3872 (`copy=False`), Apple, `newBufferWithBytesNoCopy`.
"""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, EnvironmentLacks, ShapeError
from mlxhog.metal.engine import MetalEngine
from mlxhog.metal.kernels.adds import dense_axpy

_HOST_WRITES = (1.0, -6.5, 1024.0)  # added to exactly
NAMES = ("mlx", "mps", "emulated")


def create(name: str, *, threads: int = 2) -> MetalEngine:
    """Start an engine; imports its framework.

    Args:
        name: one of `NAMES`.
        threads: OS threads of the emulated one.

    Raises:
        ConfigError: unknown name.
        EnvironmentLacks: no Apple GPU, or (emulated) no C++ compiler.
    """
    if name == "mlx":
        from mlxhog.metal.engine_mlx import MLXEngine

        return MLXEngine()
    if name == "mps":
        from mlxhog.metal.engine_torch import MPSEngine

        return MPSEngine()
    if name == "emulated":
        from mlxhog.metal.emulator.engine import EmulatorEngine

        return EmulatorEngine(threads=threads)
    raise ConfigError(f"no Metal engine {name!r}; choose from {', '.join(NAMES)}")


def shares_memory(engine: MetalEngine, wrapped: Any, host: NDArray[np.float32], at: int) -> bool:
    """Whether a kernel sees writes of the host, and the host sees writes of a kernel.

    A framework may copy memory that it should share, on a system, version or address that we have
    not tested. Training would then continue, and silently lose every step of the GPU.

    Args:
        engine: the engine that wrapped the array.
        wrapped: the engine's array over `host`.
        host: (n,) float32.
        at: index of a float that no other process uses, such as `Layout.self_check`; restored.
    """
    before = host[at]
    try:
        for value in _HOST_WRITES:
            host[at] = value
            one = engine.array(np.ones(1, np.float32))
            engine.run(dense_axpy(wrapped, one, scale=0.5, offset=at))
            if host[at] != np.float32(value + 0.5):
                return False
        return True
    finally:
        host[at] = before


MAX_ELEMENTS = 2**31 - 1  # of one MLX array: its sizes are int32


def wrappable(host: NDArray[Any], *, page: int = mmap.PAGESIZE) -> NDArray[Any]:
    """Return host memory that a GPU can import without a copy.

    Args:
        host: one segment of an arena, flat, padding included; any dtype, may be read-only (a GPU
            that writes to it nevertheless gets a fault, not an exception).
        page: bytes in a page, 16,384 on Apple silicon.

    Raises:
        ShapeError: not flat, not contiguous, or without elements.
        EnvironmentLacks: it does not begin or end on a page, or has too many elements.
    """
    if host.ndim != 1 or not host.flags.c_contiguous or not host.size:
        raise ShapeError(
            f"an array of shape {host.shape} and strides {host.strides} cannot be imported; "
            "pass a whole segment, flat and contiguous, and slice the imported array"
        )
    address = int(host.ctypes.data)
    for what, n in (
        (f"starts at {address:#x}", address),
        (f"has {host.nbytes:,} bytes", host.nbytes),
    ):
        if n % page:
            raise EnvironmentLacks(
                f"this memory {what}, {n % page:,} bytes past a page of {page:,}; a GPU imports "
                "whole pages only: pass a segment of an arena, whole and with its padding, or "
                "train with --read snapshot and --gpu-write cpu, which import nothing"
            )
    if host.size > MAX_ELEMENTS:
        raise EnvironmentLacks(
            f"this segment has {host.size:,} elements, one array of MLX at most "
            f"{MAX_ELEMENTS:,}; train with --read snapshot and --gpu-write cpu"
        )
    return host
