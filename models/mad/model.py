"""A MAD candidate over the arrays of the framework at hand."""

from types import ModuleType
from typing import Any

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.ops.arrays import Array, Arrays


def init_state(cfg: MADConfig, B: int, xp: Arrays[Array]) -> Any:
    """Return the state before the first token of B sequences."""
    return _model(xp).init_state(cfg, B)


def blocks(
    cfg: MADConfig, params: Any, x: Array, state: Any, run: Pass[Array]
) -> tuple[Array, Any]:
    """From the embedded tokens (B, S, d) to the final norm, and the state after the last."""
    y, after = _model(run.ops.xp).blocks(cfg, params, x, state, run)
    return y, after


def _model(xp: Arrays[Array]) -> ModuleType:
    if xp.framework == "torch":
        from mlxhog.models.mad import model_torch

        return model_torch
    from mlxhog.models.mad import model_mlx

    return model_mlx
