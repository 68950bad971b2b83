"""Lock-free training of xLSTM models, MLX and PyTorch workers side by side on one arena.

    import mlxhog

    result = mlxhog.train(data="notes/", time=60)
    print(mlxhog.load(result.run).generate("Fellow citizens", max_new_tokens=100))

Names are imported on first use, so `import mlxhog` is fast and loads no framework.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxhog import mad
    from mlxhog.arena.arena import Arena
    from mlxhog.config.config import TrainConfig
    from mlxhog.conformance.api import parity
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
    )
    from mlxhog.experiments.api import compare
    from mlxhog.progress import Progress, Result
    from mlxhog.serving.evaluation import evaluate
    from mlxhog.serving.model import LoadedModel, load
    from mlxhog.training.supervisor.api import train


def _use_installed_package() -> None:
    """Use the installed package in place of these sources, which lack the compiled parts.

    Python started in the checkout finds the sources first. All modules, this one included, then
    come from the installation, so versions are never mixed.
    """
    for folder in sys.path:
        spec = PathFinder.find_spec(__name__, [folder])
        if spec is None or spec.loader is None or not _is_whole(spec.submodule_search_locations):
            continue
        module = sys.modules[__name__] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return
    raise ImportError(
        f"{__path__[0]} holds the sources of mlxhog, which lack the compiled parts; install them "
        "with `python -m pip install -c constraints.txt .`"
    )


def _is_whole(path: Sequence[str] | None) -> bool:
    """Whether a package with this search path has the parts that an installation adds."""
    return PathFinder.find_spec(f"{__name__}.models", path or ()) is not None


if importlib.util.find_spec(f"{__name__}.models") is None:  # an editable installation maps it
    _use_installed_package()  # nothing below is used then, so it must import no module of ours

__all__ = [
    "Arena",
    "ArenaError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Diverged",
    "EnvironmentLacks",
    "LoadedModel",
    "MlxhogError",
    "Progress",
    "Result",
    "RunError",
    "ShapeError",
    "TrainConfig",
    "WorkerFailed",
    "compare",
    "evaluate",
    "load",
    "mad",
    "parity",
    "train",
]

_HOMES = {
    "Arena": "mlxhog.arena.arena",
    "LoadedModel": "mlxhog.serving.model",
    "Progress": "mlxhog.progress",
    "Result": "mlxhog.progress",
    "TrainConfig": "mlxhog.config.config",
    "compare": "mlxhog.experiments.api",
    "evaluate": "mlxhog.serving.evaluation",
    "load": "mlxhog.serving.model",
    "mad": "mlxhog.mad",
    "parity": "mlxhog.conformance.api",
    "train": "mlxhog.training.supervisor.api",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, "mlxhog.errors"))
    value: object = home if name == "mad" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
