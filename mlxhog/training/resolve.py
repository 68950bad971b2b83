"""The options of a run after everything that they leave open has been decided.

What is open until model, workers and checkpoint are known: budget, optimizer and strategy of a run
that goes on, the strategy of a new one, the step size, and the schedule of a run without an end.
All of it is decided here, once, before anything is started; nobody changes it afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mlxhog import optim
from mlxhog.config import optimizers, schedules
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategies import Serial
from mlxhog.config.strategy import StrategyChoice, of, strategy_name
from mlxhog.errors import ConfigError
from mlxhog.files import plain_yaml
from mlxhog.files.paths import expanded
from mlxhog.files.quantities import format_number
from mlxhog.machine.workers import WorkerSpec
from mlxhog.models import families, registry
from mlxhog.models.families import ModelConfig
from mlxhog.training import evenness
from mlxhog.training.resume import Resumption


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a call of `train` comes to.

    Attributes:
        config: the options, none of which is open.
        lr: largest step size, with the factor of `lr_workers`.
        budget: what this call may add.
        resumption: the run that goes on; None begins a new one.
        auto: whether a resume is to leave the strategy open: the workers have not been measured
            yet, or there is only one.
        automatic: step size and numbers of the optimizer that `optim.for_model` decided, since they
            were not given, neither now nor when the run began.
        notes: what the user should know of these decisions.
    """

    config: TrainConfig
    lr: float
    budget: Budget
    resumption: Resumption | None
    auto: bool
    automatic: tuple[str, ...]
    notes: tuple[str, ...]


def resolve(
    config: TrainConfig,
    model: ModelConfig,
    hidden: frozenset[str],
    workers: Sequence[WorkerSpec],
) -> tuple[Resolved, ...]:
    """Decide what the options of a call leave open.

    Args:
        config: of the call.
        model: its architecture.
        hidden: the model's hidden matrices.
        workers: that the run begins with.

    Returns:
        The options with each strategy that the run may have: with one, unless several workers have
        to be measured first; the first is what they look like.

    Raises:
        RunError, CheckpointError: the run that is to go on cannot.
        ConfigError: the run is done, or there is no folder to follow.
    """
    n_workers, fields = len(workers), model.to_dict()
    if not keeps_vocabulary(config):  # it is the checkpoint's, and the tokenizer is compared
        del fields["vocab_size"]
    resumption = Resumption.of(config, fields, hidden)
    if resumption is not None:
        config = resumption.config
    if config.strategy is not None:
        return (_resolved(config, model, hidden, n_workers, resumption, auto=False),)
    likely = evenness.by_likelihood(workers) if n_workers > 1 else (Serial(),)
    choices = [replace(config, strategy=one) for one in likely]
    return tuple(_resolved(one, model, hidden, n_workers, resumption, auto=True) for one in choices)


def _resolved(
    config: TrainConfig,
    model: ModelConfig,
    hidden: frozenset[str],
    n_workers: int,
    resumption: Resumption | None,
    *,
    auto: bool,
) -> Resolved:
    """Decide what the options leave open once the strategy is one of them."""
    asked, before = config, {} if resumption is None else resumption.automatic()
    config = optim.for_model(config, model.hidden_size, hidden, n_workers)
    optimizer, given = optimizers.of(config), optimizers.open_numbers(asked)
    strategy = of(config, StrategyChoice)
    apart = strategy.steppers(n_workers)
    factor = optimizer.workers_factor(strategy.lr_rule, apart)
    config, notes = _without_end(config)
    if factor != 1.0:
        notes.append(
            f"lr {format_number(config.top_lr * factor)}: {format_number(factor)} of "
            f"{format_number(config.top_lr)}, since each worker adds steps of its own (lr_workers)"
        )
    notes += _other_defaults(config, asked, before, n_workers)
    chosen = optimizers.of(asked)
    if chosen.beside and not hidden:
        notes.append(
            f"optimizer {chosen.name}: this {families.of(model).title} has no hidden matrix "
            f"(both sides at least {model.hidden_size / 2:g}, half its width), so "
            f"{chosen.beside} moves every parameter"
        )
    if strategy != asked.strategy:
        notes.append(
            f"predict last: {optimizer.name} has no moments of all workers, so it is "
            f"{config.prediction} (--moments shared keeps it)"
        )
    budget = None if resumption is None else resumption.own_budget
    return Resolved(
        config=config,
        lr=config.top_lr * factor,
        budget=budget or Budget(steps=config.steps, tokens=config.tokens, seconds=config.time),
        resumption=resumption,
        auto=auto,
        automatic=tuple(
            name
            for name, value in optimizers.open_numbers(config).items()
            if value is not None and given.get(name) in (None, before.get(name))
        ),
        notes=tuple(notes),
    )


def _other_defaults(
    config: TrainConfig, asked: TrainConfig, before: Mapping[str, float], workers: int
) -> list[str]:
    """Notes on what has been left open, and comes to another value than when the run began."""
    given, numbers = optimizers.open_numbers(asked), optimizers.open_numbers(config)
    return [
        f"{name} {numbers[name]:.4g}: the default of {optimizers.of(config).name} in "
        f"{strategy_name(config)} with {workers} worker{'s' * (workers > 1)}; the run had {was:.4g}"
        for name, was in before.items()
        if given.get(name) is None and numbers.get(name) not in (None, was)
    ]


def sets_vocabulary(config: TrainConfig) -> bool:
    """Whether `set` says how large the vocabulary is."""
    return "vocab_size" in plain_yaml.assignments(config.set)


def keeps_vocabulary(config: TrainConfig) -> bool:
    """Whether the model's vocabulary is its own: of a checkpoint, or given by `set`."""
    return registry.is_stored(config.model) or sets_vocabulary(config)


def _without_end(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The options, with a step size that needs no end where nothing ends the run; and notes.

    Raises:
        ConfigError: there is no folder to follow.
    """
    if config.follow is None:
        return config, []
    if not expanded(config.follow).is_dir():
        raise ConfigError(
            f"follow: there is no folder {config.follow}; make it (mkdir), or name another"
        )
    note = f"follows {config.follow}: new text files there are trained once"
    if config.has_budget or schedules.of(config).falls:
        return config, [note]
    constant = replace(config, schedule=schedules.Constant(warmup=0.0))
    return constant, [
        f"{note}, at a constant lr of {format_number(config.top_lr)}, until mlxhog stop or Ctrl-C",
    ]
