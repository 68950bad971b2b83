"""What a training run of a candidate will be, before anything is drawn or started.

Everything that can be wrong with a configuration is found here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from mlxhog import arena, optim, strategies
from mlxhog.arena import Arena, Layout, records
from mlxhog.backends import gpu_write, model_kernels
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.backends.gpu_write import Writers
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.machine import machine
from mlxhog.machine.workers import GPU_BACKENDS, WorkerSpec, resolve_workers
from mlxhog.mad import tasks
from mlxhog.mad.run_config import RunConfig
from mlxhog.mad.training import score_job
from mlxhog.mad.training.course import step_limit
from mlxhog.mad.training.inside import INSIDE
from mlxhog.mad.training.rows import Drawn
from mlxhog.mad.training.score_job import HeldOut
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.mad.config import MADConfig
from mlxhog.optim import schedules
from mlxhog.strategies import course
from mlxhog.training.job import Job


@dataclass(frozen=True)
class RunPlan:
    """A run that has passed every check; picklable.

    Attributes:
        config: what was asked for.
        model: the architecture.
        options: the protocol in the words of `mlxhog train`, which workers understand.
        drawn: its rows.
        workers: backend and threads of each; one alone needs no process of its own.
        writers: who adds their steps, and in which write mode.
        kernels: form of the model's operations of each worker.
        notes: what the user should know about these choices.
        layout: of the arena.
        limit: most steps.
        per_epoch: steps of an epoch.
    """

    config: RunConfig
    model: MADConfig
    options: TrainConfig
    drawn: Drawn
    workers: tuple[WorkerSpec, ...]
    writers: Writers
    kernels: tuple[str, ...]
    notes: tuple[str, ...]
    layout: Layout
    limit: int
    per_epoch: int

    def fill(self, shared: Arena) -> None:
        """Write the initial values into a new arena."""
        for name, value in init_params(self.model, self.config.seed).items():
            shared.param(name)[...] = value
        course.begin(self.options, len(self.workers), shared)

    def job(self, shared: Arena, run_dir: Path, slot: int, owner: int, spec: WorkerSpec) -> Job:
        """Return what a worker needs.

        Args:
            shared: the arena.
            run_dir: for its log.
            slot: in the worker table.
            owner: the incarnation under which it takes tickets.
            spec: its backend and threads.
        """
        protocol = self.config.protocol
        specs = param_spec(self.model).items()
        return Job(
            handle=shared.handle(),
            slot=slot,
            owner=owner,
            workers=len(self.workers),
            backend=spec.backend,
            threads=spec.threads,
            write=self.writers.write,
            kernels=self.kernels[slot - 1],
            engine=self.writers.engine(spec.backend),
            micro_batch=protocol.batch_size,
            share=GPUShare(workers=max(1, sum(w.backend in GPU_BACKENDS for w in self.workers))),
            config=self.options,
            model=self.model,
            decay=frozenset(name for name, one in specs if one.decay or protocol.wd_all),
            batches=self.drawn.batches,
            schedule=self._schedule(),
            side_jobs=HeldOut(self.drawn, self.model).open,
            budget=Budget(steps=self.limit),
            step_limit=self.limit,
            run_dir=run_dir,
        )

    def _schedule(self) -> partial[schedules.Schedule]:
        protocol = self.config.protocol
        if protocol.schedule == "constant":
            return partial(schedules.constant, protocol.lr)
        return partial(
            schedules.cosine_by_epoch,
            protocol.lr,
            floor=protocol.lr_floor,
            steps=self.limit,
            per_epoch=self.per_epoch,
        )


def make_run_plan(config: RunConfig, inside: Mapping[str, object] | None = None) -> RunPlan:
    """Check a run against its task and this machine; draws no row and imports no framework.

    Args:
        config: the run.
        inside: some of the options that `mad.inside.INSIDE` names.

    Raises:
        ConfigError: a setting, a size or a mix cannot be.
        EnvironmentLacks: a backend is missing.
    """
    task = tasks.find(config.task)
    protocol, given = config.protocol, dict(config.settings)
    if protocol.fuzzy_compat and "fuzzy_compat" in options(task.settings):
        given["fuzzy_compat"] = True
    settings = tasks.resolve(config.task, given)
    model = MADConfig(
        vocab_size=settings.vocab,
        hidden_size=config.dim,
        layers=config.layers,
        max_length=settings.length,
        position=config.position,
        backbone=task.backbone,
    )
    if protocol.select == "val" and not settings.val_rows:
        raise ConfigError(
            "select is val, but no validation rows are drawn; set val_rows of the task, such as "
            f"--set val_rows={settings.test_rows}, or select test"
        )
    inside = inside or {}
    chosen = resolve_workers(
        config.workers,
        config.threads,
        machine=machine.here(),
        serial=inside.get("strategy") == "serial",
    )
    workers = chosen.workers
    training = _training(config, workers, inside)
    writers = gpu_write.resolve(training, workers)
    kernels = model_kernels.resolve(training, workers)
    n_tickets = math.ceil(settings.train_rows / protocol.batch_size)
    together = len(workers) if training.strategy == "sync" else 1
    per_epoch = max(1, n_tickets // together)
    spec, optimizer = param_spec(model), optim.build(training)
    return RunPlan(
        config=config,
        model=model,
        options=training,
        drawn=Drawn(
            task=task.name,
            settings=tuple(sorted(asdict(settings).items())),
            seed=config.seed,
            batch_size=protocol.batch_size,
            labels=protocol.labels,
        ),
        workers=workers,
        writers=writers,
        kernels=kernels.of_workers,
        notes=(*chosen.notes, *writers.notes, *kernels.notes),
        layout=arena.plan(
            spec,
            max_workers=len(workers),
            private=optimizer.state_segments,
            shared=optimizer.shared_segments,
            n_tickets=n_tickets,
            extra={
                **{f"ring.{k + 1}": ("uint8", records.RING_BYTES) for k in range(len(workers))},
                **strategies.segments(training, len(workers), len(spec)),
                score_job.SEGMENT: score_job.segment(len(workers)),
            },
        ),
        limit=step_limit(protocol, per_epoch),
        per_epoch=per_epoch,
    )


def _training(
    config: RunConfig, workers: tuple[WorkerSpec, ...], inside: Mapping[str, object]
) -> TrainConfig:
    """Say the protocol in the words of `mlxhog train`."""
    assert set(inside) <= set(INSIDE)
    protocol = config.protocol
    how: dict[str, object] = dict(inside)
    if len(workers) == 1:  # nothing runs beside it: every strategy is this one
        live = workers[0].backend == "torch:cpu"  # where sharing memory costs nothing
        how |= {"strategy": "serial", "predict": "none", "async_after": 0.0, "average_every": None}
        how["read"] = "live" if live else "snapshot"
    return TrainConfig(
        optimizer="adamw",
        lr=protocol.lr,
        beta2=protocol.beta2,
        weight_decay=protocol.weight_decay,
        clip=protocol.clip,
        batch_size=protocol.batch_size,
        seed=config.seed,
        **how,  # type: ignore[arg-type]  # checked by TrainConfig itself
    )
