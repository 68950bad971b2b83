"""The plan of a candidate's training run, before its start, and its training rows.

It checks the whole configuration.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Self

import numpy as np

from mlxhog import optim, strategies
from mlxhog.arena.control import Ring
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base import machine, verdicts
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec, resolve_workers
from mlxhog.config import schedules
from mlxhog.config.budget import Budget
from mlxhog.config.choices import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.data.batches import Order
from mlxhog.errors import ConfigError
from mlxhog.mad import tasks
from mlxhog.mad.options import worker_options as possible_options
from mlxhog.mad.run import RunConfig
from mlxhog.mad.tasks import Dataset, Task, make_task
from mlxhog.mad.training.evaluation import step_limit
from mlxhog.models import families
from mlxhog.models.families import param_spec
from mlxhog.models.mad.config import MADConfig
from mlxhog.strategies import Serial, Sim
from mlxhog.strategies.context import Context
from mlxhog.training import choose_strategy, kernel_choice
from mlxhog.training.job import Job, Plan, plan_layout

KEPT = 2
"""Data sets in the memory of a process: candidates are mostly compared on the same one."""


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task as batches: in every epoch each row once, in an order of its own.

    The last batch of an epoch is smaller if the batch size does not divide the number of rows.
    Small and hashable: rows are drawn when they are needed.

    Concurrency: equal objects in different processes give equal batches. One object is not for
    several threads.
    """

    settings: Task  # of the task; to unpickle those of a user's task, a process loads its file
    seed: int  # of the rows, and of their order
    batch_size: int  # rows of one batch
    labels: str = "dense"  # of training rows, "dense" or "scored"

    def dataset(self) -> Dataset:
        """Return the rows, drawn unless they are in the cache."""
        return _dataset(self.settings, self.seed, self.labels)

    def batches(self) -> Self:
        """Return this source of batches."""
        return self

    @property
    def n_tickets(self) -> int:
        """Batches per epoch."""
        return math.ceil(self.settings.train_rows / self.batch_size)

    def example(self) -> Batch:
        """Return a batch of the usual shape, for a trial of a model."""
        return self.at(0, 0)

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket."""
        order, data = _order(self.settings, self.seed), self.dataset()
        start = ticket * self.batch_size
        chosen = order.at(epoch, start, min(self.batch_size, order.n - start))
        x, y = (np.ascontiguousarray(a[chosen], np.int32) for a in (data.train_x, data.train_y))
        return Batch(x, y, n_bytes=0)


@lru_cache(maxsize=KEPT)
def _dataset(settings: Task, seed: int, labels: str) -> Dataset:
    return make_task(settings.name, seed=seed, labels=labels, **asdict(settings))


@lru_cache(maxsize=KEPT)
def _order(settings: Task, seed: int) -> Order:
    values = tuple(sorted(asdict(settings).items()))
    return Order(settings.train_rows, f"{settings.name}|{values}", seed)


class NoJobs:
    """The side jobs of a candidate's worker: none, as the supervisor scores the held-out rows."""

    def __init__(self, job: Job, context: Context, ring: Ring) -> None:
        """Take what every worker's side jobs get."""

    def serve(self) -> None:
        """Do nothing."""

    evaluate_rest = serve


@dataclass(frozen=True, kw_only=True)
class RunPlan(Plan):
    """A candidate's run that has passed every check; picklable."""

    # the run as it was asked for; `config` is the same in the words of `mlxhog train`
    asked: RunConfig
    model: MADConfig  # the architecture
    task_rows: TaskRows  # its rows, not drawn yet
    limit: int  # most steps
    per_epoch: int  # steps of an epoch


def check_reach(origin: str, architecture: MADConfig, rows: Iterable[Task]) -> None:
    """Raise a ConfigError if an architecture's file ends before a row of a task does.

    Args:
        origin: the name of the file, for the message.
        architecture: of the file.
        rows: settings of the tasks.
    """
    parts, most = architecture.bounded_parts, architecture.max_length
    length, task = max((max(one.length, one.test_length), one.name) for one in rows)
    if parts and length > most:
        raise ConfigError(
            f"{origin} has max_length {most}, at which {' and '.join(parts)} "
            f"{'end' if len(parts) > 1 else 'ends'}, and {task} has rows of {length} tokens; set "
            f"max_length to at least {length} in the file, or choose shorter rows"
        )


def make_run_plan(
    config: RunConfig,
    worker_options: Mapping[str, object] | None = None,
    *,
    parallel: int = 1,
) -> RunPlan:
    """Check a run against its task and this machine, without a row and without a framework.

    Args:
        config: the run.
        worker_options: options of `TrainConfig` for several workers.
        parallel: runs at once, which share the GPU's memory.

    Raises:
        ConfigError: a setting, a size or a mix of backends is impossible.
        EnvironmentLacks: a backend is missing.
    """
    protocol, settings = config.protocol, tasks.resolve(config.task, config.settings)
    model, how = config.model(), worker_options or {}
    chosen = resolve_workers(
        config.workers, config.threads, machine=machine.here(),
        serial=how.get("strategy") == Serial.name,
    )  # fmt: skip
    workers, notes = chosen.workers, [*chosen.notes]
    training = _training(config, model, workers, how)
    backends, record = [worker.backend for worker in workers], verdicts.load()
    writers = kernel_choice.choose_writers(training, backends, record, notes.append)
    kernels = kernel_choice.choose_kernels(training, backends, record, notes.append)
    task_rows = TaskRows(settings, config.seed, protocol.batch_size, protocol.labels)
    strategy = strategies.build(training, len(workers))
    rule = optim.build(
        training,
        families.hidden_matrices(model),
        groups=families.rate_groups(model),
        tokens_per_step=strategy.tokens_per_step,
    )
    steppers = strategy.steppers(len(workers))
    lr = training.top_lr * optim.chosen(training).workers_factor(strategy.lr_workers, steppers)
    per_epoch = max(1, int(task_rows.n_tickets / strategy.batches_per_step()))
    limit, spec = step_limit(protocol, per_epoch), param_spec(model)
    scoring = backends[:1] if len(workers) > 1 else []  # the supervisor has a framework, too
    gpu_users = max(1, sum(name in GPU_BACKENDS for name in backends + scoring))
    schedule: schedules.Constant | schedules.CosineByEpoch = schedules.Constant(warmup=0.0)
    if protocol.schedule == "cosine":
        schedule = schedules.CosineByEpoch(protocol.lr_floor, limit, per_epoch)
    return RunPlan(
        asked=config,
        config=training,
        strategy=strategy,
        budget=Budget(steps=limit),
        model=model,
        task_rows=task_rows,
        workers=workers,
        writers=writers,
        kernels=kernels,
        notes=tuple(notes),
        layout=plan_layout(spec, strategy, rule, task_rows.n_tickets),
        decay=frozenset(name for name, one in spec.items() if one.decay or protocol.wd_all),
        gpu_share=GPUShare(workers=parallel * gpu_users),
        batches=task_rows.batches,
        schedule=partial(schedule.of_run, lr, schedules.Epochs(per_epoch)),
        side_jobs=NoJobs,
        limit=limit,
        per_epoch=per_epoch,
    )


def _training(
    config: RunConfig,
    model: MADConfig,
    workers: tuple[WorkerSpec, ...],
    worker_options: Mapping[str, object],
) -> TrainConfig:
    """Return the protocol as options of `mlxhog train`, with values for the open ones.

    Runs are short, so several workers are not measured: without a strategy, or a number of one,
    they have the one that `mlxhog train` gives to workers that it cannot measure.
    """
    assert set(worker_options) <= set(possible_options())
    protocol, how = config.protocol, dict(worker_options)
    if how.get("strategy") == Sim.name:
        raise ConfigError(
            "strategy sim is for mlxhog train: workers of a candidate are processes; with "
            "strategy=round_robin their gradients are P - 1 steps old, and runs repeat bit for bit"
        )
    if len(workers) == 1:  # without another worker, every strategy is this one
        live = workers[0].backend == "torch:cpu"  # where sharing memory costs nothing
        how = {name: v for name, v in how.items() if name not in STRATEGIES.numbers()}
        how |= {"strategy": Serial(), "read": "live" if live else "snapshot"}
    same = ("optimizer", "lr", "clip", "batch_size")
    training = TrainConfig(
        **{name: getattr(protocol, name) for name in same}, seed=config.seed, **how
    )
    if training.strategy is None:
        training = replace(training, strategy=choose_strategy.by_likelihood(workers)[0])
    return optim.for_model(
        training,
        model.hidden_size,
        families.hidden_matrices(model),
        len(workers),
        vocabulary=model.vocab_size,
        groups=families.rate_groups(model),
    )
