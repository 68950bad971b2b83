"""Lock-free training of xLSTM models, MLX and PyTorch workers side by side on one arena.

    import mlxhog

    result = mlxhog.train(data="notes/", time=60)
    print(mlxhog.load(result.run).generate("The ", max_new_tokens=100))

Names are imported on first use, so `import mlxhog` is fast and loads no framework.
"""

import importlib
import importlib.util
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
    from mlxhog.config.config import TrainConfig
    from mlxhog.live.model import LanguageModel, load
    from mlxhog.report.metrics import Progress, Result
    from mlxhog.training.calling import train

if importlib.util.find_spec(f"{__name__}.models") is None:  # it is mapped here by an installation
    raise ImportError(
        f"{__path__[0]} holds the sources of mlxhog, which lack the compiled parts; start Python "
        "in another folder, or install with `python -m pip install -c constraints.txt -e .`"
    )

__all__ = [
    "Arena",
    "ArenaError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Diverged",
    "EnvironmentLacks",
    "LanguageModel",
    "MlxhogError",
    "Progress",
    "Result",
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
    "LanguageModel": "mlxhog.live.model",
    "Progress": "mlxhog.report.metrics",
    "Result": "mlxhog.report.metrics",
    "TrainConfig": "mlxhog.config.config",
    "load": "mlxhog.live.model",
    "train": "mlxhog.training.calling",
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
