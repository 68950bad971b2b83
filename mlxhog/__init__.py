"""Lock-free training of xLSTM models, MLX and PyTorch workers side by side on one arena.

    from mlxhog import TrainConfig, train

    result = train(TrainConfig(time=60))

Names are imported on first use, so `import mlxhog` is fast and loads no framework.
"""

import importlib
from typing import TYPE_CHECKING

from mlxhog.errors import (
    ArenaError,
    CheckpointError,
    ConfigError,
    DataError,
    Diverged,
    EnvironmentLacks,
    MlxhogError,
    RunError,
    ShapeError,
    WorkerFailed,
    WriteModeError,
)

if TYPE_CHECKING:
    from mlxhog.arena.arena import Arena
    from mlxhog.checkpoint.checkpoint import load
    from mlxhog.config.config import TrainConfig
    from mlxhog.training.trainer import train

__all__ = [
    "Arena",
    "ArenaError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Diverged",
    "EnvironmentLacks",
    "MlxhogError",
    "RunError",
    "ShapeError",
    "TrainConfig",
    "WorkerFailed",
    "WriteModeError",
    "load",
    "train",
]

_HOMES = {
    "Arena": "mlxhog.arena.arena",
    "TrainConfig": "mlxhog.config.config",
    "load": "mlxhog.checkpoint.checkpoint",
    "train": "mlxhog.training.trainer",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
