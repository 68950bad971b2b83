"""The plan of a candidate's training run, before its start, and its training rows.

It checks the whole configuration.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np

from mlxhog import optim, strategies
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base import capabilities as verdicts
from mlxhog.base import machine
from mlxhog.base.plain_yaml import assignments
from mlxhog.base.workers import GPU_BACKENDS, backend_here, resolve_workers
from mlxhog.config import plugins
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import is_set, options
from mlxhog.data.batch import Batch
from mlxhog.data.batches import Order
from mlxhog.errors import ConfigError
from mlxhog.mad import tasks
from mlxhog.mad.options import CandidateOptions, Recipe
from mlxhog.mad.run import RunConfig, state
from mlxhog.mad.tasks import Dataset, Task, make_task
from mlxhog.mad.training.evaluation import step_limit
from mlxhog.models import families
from mlxhog.models.families import param_count, param_spec
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.models.registry import load_candidate
from mlxhog.optim import schedules
from mlxhog.strategies import Serial, Sim, Strategy
from mlxhog.training.plan import kernel_choice, strategy_rule
from mlxhog.training.plan.values import Plan, plan_layout

KEPT = 2
"""Data sets in the memory of a process: candidates are mostly compared on the same one."""


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task as batches: in every epoch each row once, in an order of its own.

    Small and hashable: rows are drawn when they are needed. Equal objects in different processes
    give equal batches; one object is not for several threads.
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


@dataclass(frozen=True, kw_only=True)
class CandidatePlan(Plan):
    """A candidate's run that has passed every check; picklable."""

    # the run as it was asked for; `config` is the same in the words of `mlxhog train`
    asked: RunConfig
    model: MADConfig  # the architecture
    task_rows: TaskRows  # its rows, not drawn yet
    limit: int  # most steps
    per_epoch: int  # steps of an epoch

    def to_json(self) -> dict[str, Any]:
        """Return the run as `mlxhog mad train --json` prints it."""
        config = self.asked
        return {
            "task": config.task,
            "layers": canonical(config.layers),
            "backend": config.workers,
            "threads": config.threads,
            "strategy": self.strategy.name,
            "dim": config.dim,
            "params": param_count(self.model),
            "state": state(config.layers, config.dim, self.model.max_length),
            "seed": config.seed,
            "settings": dict(sorted(asdict(self.task_rows.settings).items())),
            "recipe": config.recipe.to_dict(),
            "limit": self.limit,
            "key": config.key(),
        }


def load_comparable(name: str) -> MADConfig:
    """Return `load_candidate(name)`; ConfigError if its runs would not compare with others."""
    file = load_candidate(name)
    if file.norm_eps != MADConfig.norm_eps:
        raise ConfigError(
            f"{name} has norm_eps {file.norm_eps:g}, candidates are compared with "
            f"{MADConfig.norm_eps:g}; leave it out of the file"
        )
    return file


def run_config(candidate: CandidateOptions, recipe: Recipe) -> RunConfig:
    """Return the run that options ask for on this machine."""
    if candidate.layers is None and candidate.arch is None:
        raise ConfigError('give the candidate, as in --layers "mlstm swiglu", or with --arch FILE')
    here, task = machine.here(), tasks.find(candidate.task)
    chosen = tasks.resolve(task.name, assignments(candidate.task_set), origin="--task-set")
    if candidate.arch is None:
        words = " ".join((candidate.layers or "").split("\n"))
        layers, dim, position = parse(words), 128, candidate.position or "none"
    else:
        file = load_comparable(candidate.arch)
        layers, dim, position = file.layers, file.hidden_size, candidate.position or file.position
    one = "1" if candidate.backend is None else backend_here(candidate.backend, here)
    workers = resolve_workers(candidate.workers or one, candidate.threads, machine=here).workers
    threads = [each.threads for each in workers if each.backend not in GPU_BACKENDS]
    return RunConfig(
        task=task.name,
        settings=asdict(chosen),
        layers=layers,
        dim=candidate.dim or dim,
        position=position,
        recipe=recipe,
        seed=candidate.seed,
        workers=",".join(each.backend for each in workers),
        threads=min(threads, default=1),
        plugins=plugins.loaded(),
    )


def make_run_plan(
    config: RunConfig, worker_options: Mapping[str, object] | None = None, *, parallel: int = 1
) -> CandidatePlan:
    """Check a run against its task and this machine, without a row and without a framework.

    Arguments are those of `candidate.train`.

    Raises:
        ConfigError: a setting, a size or a mix of backends is impossible.
        EnvironmentLacks: a backend is missing.
    """
    recipe, settings = config.recipe, tasks.resolve(config.task, config.settings)
    model = config.model()
    same = {name: getattr(recipe, name) for name in ("optimizer", "lr", "clip", "batch_size")}
    same |= {"seed": config.seed, "recompute": "none"}
    same |= {"dtype": "float32"}  # scores of every machine are alike
    training = TrainConfig(**same, **(worker_options or {}))
    _check_strategy(strategies.strategy_of(training))
    chosen = resolve_workers(
        config.workers, config.threads, machine=machine.here(),
        serial=isinstance(training.strategy, Serial),
    )  # fmt: skip
    workers, notes = chosen.workers, [*chosen.notes]
    if len(workers) == 1:  # without another worker, every strategy is this one
        given = worker_options or {}
        unused = [f"{name}={given[name]}" for name in ("read", "write") if name in given]
        if training.strategy is not None and training.strategy.is_own():
            unused.append(f"your {training.strategy}")
        if unused:
            raise ConfigError(
                f"one worker trains a candidate without a strategy, so {' and '.join(unused)} "
                'would not be used; give it several (--workers "torch:cpu*2"), or leave it out'
            )
        live = workers[0].backend == "torch:cpu"  # where sharing memory costs nothing
        training = training.having(strategy=Serial(), read="live" if live else "snapshot")
    elif training.strategy is None:  # runs are short, so no strategy is measured
        training = training.having(strategy=strategy_rule.by_likelihood(workers)[0])
    hidden, groups = families.hidden_matrices(model), families.rate_groups(model)
    training = strategies.for_model(
        training, model.hidden_size, hidden, len(workers), vocabulary=model.vocab_size
    )
    backends, record = [worker.backend for worker in workers], verdicts.load()
    writers = kernel_choice.choose_writers(training, backends, record, notes.append)
    kernels = kernel_choice.choose_kernels(training, model, backends, record, notes.append)
    task_rows = TaskRows(settings, config.seed, recipe.batch_size, recipe.labels)
    strategy = strategies.build(training, len(workers))
    rule = strategies.build_optimizer(
        training, hidden, groups=groups, tokens_per_step=strategy.tokens_per_step
    )
    steppers = strategy.steppers(len(workers))
    factor = optim.optimizer_of(training).workers_factor(strategy.lr_workers, steppers)
    per_epoch = max(1, int(task_rows.n_tickets / strategy.batches_per_step()))
    limit, spec = step_limit(recipe, per_epoch), param_spec(model)
    scoring = backends[:1] if len(workers) > 1 else []  # the supervisor has a framework, too
    gpu_users = max(1, sum(name in GPU_BACKENDS for name in backends + scoring))
    schedule: schedules.Constant | schedules.CosineByEpoch = schedules.Constant(warmup=0.0)
    if recipe.schedule == "cosine":
        schedule = schedules.CosineByEpoch(recipe.min_lr, limit, per_epoch)
    return CandidatePlan(
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
        decay=frozenset(name for name, one in spec.items() if one.decay or recipe.wd_all),
        gpu_share=GPUShare(workers=parallel * gpu_users),
        batches=task_rows.batches,
        schedule=partial(schedule.of_run, training.top_lr * factor, schedules.Epochs(per_epoch)),
        limit=limit,
        per_epoch=per_epoch,
    )


def _check_strategy(strategy: Strategy | None) -> None:
    """Refuse a strategy, or a number of one, that the workers of a candidate lack."""
    if isinstance(strategy, Sim):
        raise ConfigError(
            "strategy sim is for mlxhog train: workers of a candidate are processes; with "
            "strategy=round_robin their gradients are P - 1 updates stale, and runs repeat bit for "
            "bit"
        )
    numbers = {} if strategy is None else options(type(strategy))
    if foreign := [n for n, one in numbers.items() if one.train_only and is_set(strategy, n)]:
        raise ConfigError(
            f"strategy {strategy}: {', '.join(foreign)} is for mlxhog train; leave it out"
        )
