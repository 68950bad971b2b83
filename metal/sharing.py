"""The proof, at run time, that an engine's array and the host's are one memory.

A framework may copy where it was asked to share, on a system, version or address that nobody has
tried. Training would then go on, and quietly lose every step of the GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.metal.engine import Engine
from mlxhog.metal.kernels.adds import dense_axpy

_HOST_WRITES = (1.0, -6.5, 1024.0)  # added to exactly


def shares_memory(engine: Engine, adopted: Any, host: NDArray[np.float32], at: int) -> bool:
    """Whether a kernel sees what the host writes, and the host what a kernel writes.

    Args:
        engine: adopted the array.
        adopted: the engine's array over `host`.
        host: (n,) float32.
        at: a float that nobody else uses meanwhile, such as `Arena.self_check`'s; put back after.
    """
    before = host[at]
    try:
        for value in _HOST_WRITES:
            host[at] = value
            one = engine.array(np.ones(1, np.float32))
            engine.run(dense_axpy(adopted, one, scale=0.5, offset=at))
            if host[at] != np.float32(value + 0.5):
                return False
        return True
    finally:
        host[at] = before
