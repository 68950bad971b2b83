"""MLX as a reader of the litmus arena; imported in a child."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxhog.arena import Arena
from mlxhog.doctor.litmus import Reader
from mlxhog.optim.updates import Float32


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
