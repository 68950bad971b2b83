"""Read the litmus arena with MLX, and describe a GPU; imported in a child."""

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxhog.arena import Arena, segment
from mlxhog.doctor.litmus import Reader
from mlxhog.errors import EnvironmentLacks, message_of
from mlxhog.optim.gradients import Float32


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


def device() -> dict[str, Any]:
    """Describe the GPU: its architecture, and the memory that macOS recommends and allows."""
    return dict(mx.device_info(mx.Device(mx.gpu)))


def imports(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measure imports of shared memory: whether the address stays, and the seconds, by bytes."""
    rows = list[dict[str, Any]]()
    for nbytes in sizes:
        row: dict[str, Any] = {"bytes": nbytes}
        try:
            host = np.frombuffer(segment.create(nbytes).mapping, np.float32)
            began_s = time.perf_counter()
            array = mx.asarray(host, copy=False)
            row["seconds"] = time.perf_counter() - began_s
            address = np.array(array, copy=False).ctypes.data
            row["same_address"] = address == host.ctypes.data
        except (EnvironmentLacks, OSError, ValueError, RuntimeError) as error:
            row["error"] = message_of(error)
        rows.append(row)
    return rows
