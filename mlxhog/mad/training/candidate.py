"""Train one candidate on one task, score it, and save it as a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlxhog.arena import Arena
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import contents, saving
from mlxhog.files import plain_json
from mlxhog.mad.run import Callbacks, NoCallbacks, RunConfig, RunResult
from mlxhog.mad.tasks.dataset import ceiling
from mlxhog.mad.training import several, single
from mlxhog.mad.training.evaluation import Evaluations
from mlxhog.mad.training.run_plan import make_run_plan


def train(
    config: RunConfig,
    *,
    callbacks: Callbacks | None = None,
    rungs: tuple[int, ...] = (),
    worker_options: Mapping[str, object] | None = None,
    on_end: Callable[[Arena], None] = lambda arena: None,
    tell: Callable[[str], None] = lambda message: None,
    prepare: single.Prepare = single.no_preparation,
) -> RunResult:
    """Train a candidate by its protocol, and score it on the task's held-out rows.

    One worker trains in this process, several in processes of their own, through one arena either
    way. With one worker the numbers depend on `config` and on nothing else; not on what ran in this
    process before, nor on what runs beside it.

    Args:
        config: the run.
        callbacks: told of steps and evaluations, and asked at rungs. Its `beat` may raise
            KeyboardInterrupt: the run is evaluated once more and is "interrupted"; raised again, it
            leaves this function.
        rungs: steps at which the run is evaluated and `callbacks.should_prune` asked.
        worker_options: options of `TrainConfig` for several workers, see `WORKER_OPTIONS`.
        on_end: called with the arena, at rest, before it goes; not for a diverged run.
        tell: given what the user should know: choices made for the machine, workers that died.
        prepare: called with the context of the one worker before its first step.

    Returns:
        The result; its status is "done", "diverged", "pruned" or "interrupted".

    Raises:
        ConfigError: the configuration cannot be; nothing has been drawn.
        EnvironmentLacks: a backend, or memory, is missing.
        WorkerFailed: one of several workers died too often.
    """
    callbacks = NoCallbacks() if callbacks is None else callbacks
    plan = make_run_plan(config, worker_options)
    evaluations = Evaluations(
        config.protocol,
        limit=plan.limit,
        per_epoch=plan.per_epoch,
        callbacks=callbacks,
        rungs=rungs,
    )
    for note in plan.notes:
        tell(note)
    if len(plan.workers) == 1:
        result = single.run(plan, evaluations, callbacks, on_end, prepare)
    else:
        result = several.run(plan, evaluations, callbacks, on_end, tell)
    return replace(result, ceiling=ceiling(plan.task_rows.dataset()))


def save_checkpoint(config: RunConfig, target: Path, arena: Arena) -> None:
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
    fields = contents.our_config_json(model, dtype=np.dtype(np.float32))
    step = arena.counters.load("version")
    saving.write(
        target,
        {"model.safetensors": contents.our_entries(model, params)},
        {"config.json": plain_json.dumps(fields, indent=1)},
        source=target,
        finish=lambda part: manifest.write(part, step, {"run": config.to_dict()}),
    )
