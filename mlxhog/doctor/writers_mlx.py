"""An MLX worker as a writer: MLX makes the increments, native code adds them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxhog.doctor.bench import Bench
from mlxhog.doctor.writers import CPUWriter, Increments


def cpu(bench: Bench, slot: int) -> CPUWriter:
    """Make a writer whose increments are evaluated by MLX on the CPU, anew in each pass."""

    def fresh(shape: tuple[int, ...], value: float, half: bool) -> Increments:
        dtype = mx.float16 if half else mx.float32

        def make() -> np.ndarray:
            array = mx.full(shape, value, dtype=dtype, stream=mx.cpu)
            mx.eval(array)
            return np.array(array, copy=False)

        return make

    return CPUWriter(bench, slot, fresh)
