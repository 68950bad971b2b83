"""How MLX's arrays reach a Metal engine, and how they come back."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.metal.engine import Engine


def enter(engine: Engine, arrays: Sequence[array]) -> list[Any]:
    """Return the engine's own arrays; only `mlx` leaves them unevaluated."""
    if engine.name == "mlx":
        return list(arrays)
    mx.eval(arrays)
    return [engine.array(np.array(x)) for x in arrays]


def leave(engine: Engine, arrays: Sequence[Any]) -> tuple[array, ...]:
    """Return MLX's arrays of what the engine computed."""
    if engine.name == "mlx":
        return tuple(arrays)
    return tuple(mx.array(engine.host(x)) for x in arrays)
