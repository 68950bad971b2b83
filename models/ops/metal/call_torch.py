"""How tensors reach a Metal engine, and how they come back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlxhog.metal.engine import Engine


def enter(engine: Engine, tensors: Sequence[Tensor]) -> list[Any]:
    """Return the engine's own arrays of detached tensors, row-major."""
    ready = [x.detach().contiguous() for x in tensors]
    return ready if engine.name == "mps" else [engine.array(x.numpy()) for x in ready]


def leave(engine: Engine, arrays: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of what the engine computed."""
    if engine.name == "mps":
        return list(arrays)
    return [torch.from_numpy(engine.host(x)) for x in arrays]
