"""A trained candidate as a checkpoint: what `mlxhog mad show` and `mlxhog convert` read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlxhog.arena import Arena
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import ours, saving
from mlxhog.files import plain_json
from mlxhog.mad.run_config import RunConfig
from mlxhog.mad.training.run_plan import make_run_plan


def save(config: RunConfig, target: Path, arena: Arena) -> None:
    """Write a candidate's parameters, architecture and run; `saving.check_target` has agreed.

    Args:
        config: of the run.
        target: the directory to make.
        arena: at rest.

    Raises:
        CheckpointError: a parameter is not finite; nothing is left.
        EnvironmentLacks: the disk is full, or the system refuses; nothing is left.
    """
    model = make_run_plan(config).model
    params = {name: arena.param(name) for name in arena.layout.slots}
    fields = ours.config_json(model, dtype=np.dtype(np.float32))
    step = arena.counters.load("version")
    saving.write(
        target,
        {"model.safetensors": ours.entries(model, params)},
        {"config.json": plain_json.dumps(fields, indent=1)},
        source=target,
        finish=lambda part: manifest.write(part, step, {"run": config.to_dict()}),
    )
