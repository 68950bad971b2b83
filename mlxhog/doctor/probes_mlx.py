"""MLX as a writer and as readers of the litmus arena, and its care for imported memory.

Imported in a child.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.linear import Linear

from mlxhog.arena import Arena
from mlxhog.doctor.litmus import FLOATS, Adder, Increments, cpu_adder, shared
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32

_IMPORTED_BYTES: Final = 4 << 20


def spares_imports() -> bool:
    """Whether no operation writes its result into imported memory; needs Metal."""
    host: Float32 = np.frombuffer(mmap.mmap(-1, _IMPORTED_BYTES), np.float32)
    host[:] = 1.0
    weight: Any = mx.asarray(host, copy=False)
    weight += 1
    mx.eval(weight)
    weight = mx.asarray(host, copy=False)
    weight[0] = 7.0
    mx.eval(weight)
    del weight
    layer: Any = Linear(16, 16, bias=False)
    layer.weight = mx.asarray(host, copy=False)[:256].reshape(16, 16)
    optim.SGD(learning_rate=0.5).update(layer, {"weight": mx.ones((16, 16))})
    mx.eval(layer.parameters())
    return bool((host == 1.0).all())


class SnapshotReader:
    """A flat MLX array whose memory is filled from the arena before each evaluation.

    Args:
        mapped: the arena.
        slot: unused.
        device: "cpu" or "gpu".
    """

    def __init__(self, mapped: Arena, slot: int, device: str) -> None:
        self._shared = shared(mapped, "dense")
        self._device = mx.Device(mx.gpu if device == "gpu" else mx.cpu)
        self._flat = mx.zeros(FLOATS)
        mx.eval(self._flat)
        self._inbox: Float32 = np.array(self._flat, copy=False)

    def read(self) -> Float32:
        """Return the values that it sees now."""
        updates.snapshot(self._inbox, self._shared)
        return _evaluated(self._flat, self._device)


class LiveReader:
    """The arena imported without a copy; needs Metal."""

    def __init__(self, mapped: Arena, slot: int) -> None:
        place = mapped.layout.slots["dense"]
        flat = mx.asarray(mapped.params, copy=False)
        self._live = flat[place.offset : place.offset + place.size]

    def read(self) -> Float32:
        """Return the values that it sees now."""
        return _evaluated(self._live, mx.Device(mx.gpu))


def _evaluated(array: mx.array, device: mx.Device) -> Float32:
    """Return the values that a computation on the device sees: the product is a new array."""
    values = mx.multiply(array, 1.0, stream=device)
    mx.eval(values)
    return np.array(values, copy=False)


def cpu_writer(mapped: Arena, slot: int) -> Adder:
    """Create a writer whose increments MLX evaluates on the CPU, anew in each pass."""

    def fresh(shape: tuple[int, ...], value: float) -> Increments:
        def make() -> Float32:
            array = mx.full(shape, value, dtype=mx.float32, stream=mx.cpu)
            mx.eval(array)
            return np.array(array, copy=False)

        return make

    return cpu_adder(mapped, slot, fresh)
