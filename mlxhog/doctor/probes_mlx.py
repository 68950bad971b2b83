"""MLX as a reader of the litmus arena, and its care for imported memory; imported in a child."""

from __future__ import annotations

import mmap
from typing import Any, Final

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.linear import Linear

from mlxhog.arena import Arena
from mlxhog.doctor.litmus import Reader
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


def live(mapped: Arena) -> Reader:
    """Create the reader that imports the arena without a copy; needs Metal."""
    place = mapped.layout.slots["dense"]
    flat = mx.asarray(mapped.params, copy=False)
    alias = flat[place.offset : place.offset + place.size]

    def read() -> Float32:
        values = mx.multiply(alias, 1.0, stream=mx.Device(mx.gpu))  # a new array
        mx.eval(values)
        return np.array(values, copy=False)

    return read
