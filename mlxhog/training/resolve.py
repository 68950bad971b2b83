"""Decide the open options of a call: a `Resolution` for each candidate strategy.

Some options are open until model, workers and checkpoint are known: budget, optimizer and strategy
of a resumed run, the strategy of a new one, the step size, and the schedule of a run without an
end. All of them are decided here, once, before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog import optim
from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_number
from mlxhog.base.workers import WorkerSpec
from mlxhog.config import optimizers, schedules
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategies import Serial
from mlxhog.config.strategy import StrategyChoice, of, strategy_name
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.training import choose_strategy, vocabulary
from mlxhog.training.resume import Resumption


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The options of a call as given and as resolved.

    Attributes:
        asked: as given; open options are None or "auto".
        resolved: the same with every decision.
        lr: largest step size, with the factor of `lr_workers`.
        budget: of this call.
        resumption: the run that is resumed; None for a new one.
        leaves_strategy_open: whether the run may have another strategy later, since no option
            names one.
        automatic: step size and numbers of the optimizer that `optim.for_model` decided, since
            neither this call nor the first one gave them.
        notes: for the user, on these decisions.
    """

    asked: TrainConfig
    resolved: TrainConfig
    lr: float
    budget: Budget
    resumption: Resumption | None
    leaves_strategy_open: bool
    automatic: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def stored(self) -> TrainConfig:
        """The options for the run's folder; those that a resume decides again are open."""
        kept = {} if self.resumption is None else self.resumption.stored
        names = [name for name in ("model", "tokenizer") if getattr(self.asked, name) == "auto"]
        if self.resumption is None and self.asked.init_from is None:
            names = []  # they do not come from a checkpoint
        changes: dict[str, Any] = {name: kept.get(name, "auto") for name in names}
        if self.leaves_strategy_open:
            changes["strategy"] = None
        if self.resumption is not None and (began := self.resumption.began_with()):
            changes |= {**began, "resume": None, "reset_optimizer": False}
        return replace(self.resolved, **changes) if changes else self.resolved


def resumed(
    config: TrainConfig, model: ModelConfig, hidden: frozenset[str]
) -> tuple[TrainConfig, Resumption | None]:
    """Load the run that a call resumes.

    Args:
        config: of the call, with model and tokenizer.
        model: its architecture.
        hidden: names of the model's hidden matrices.

    Returns:
        The options, some of which are those of the run, and the run; None for a new one.

    Raises:
        RunError, CheckpointError: the run cannot be resumed.
        ConfigError: the run is done.
    """
    fields = model.to_dict()
    if not vocabulary.is_kept(config):  # the checkpoint has its own, and the tokenizer is compared
        del fields["vocab_size"]
    resumption = Resumption.of(config, fields, hidden)
    return (config if resumption is None else resumption.config), resumption


def resolve(
    asked: TrainConfig,
    config: TrainConfig,
    model: ModelConfig,
    hidden: frozenset[str],
    workers: Sequence[WorkerSpec],
    resumption: Resumption | None,
) -> tuple[Resolution, ...]:
    """Decide the open options of a call.

    Args:
        asked: options of the call.
        config: the same with model and tokenizer, and options of the resumed run.
        model: its architecture, with the vocabulary of the run.
        hidden: names of the model's hidden matrices.
        workers: at the start.
        resumption: the run that is resumed; None for a new one.

    Returns:
        One resolution per candidate strategy, the likely one first; several if none is named.

    Raises:
        ConfigError: the folder to follow does not exist.
    """
    groups = families.rate_groups(model)
    began = {} if resumption is None else resumption.began_with()
    trained = config.init_from is not None or bool(began)  # rows that need no long steps
    likely: tuple[StrategyChoice, ...] = (Serial(),)
    if config.strategy is not None:
        likely = (of(config, StrategyChoice),)
    elif len(workers) > 1:
        likely = choose_strategy.by_likelihood(workers)
        if resumption is not None and resumption.regime == likely[1].name:
            likely = likely[::-1]

    def with_strategy(strategy: StrategyChoice) -> Resolution:
        chosen = config.having(strategy=strategy)
        numbers = optim.for_model(
            chosen,
            model.hidden_size,
            hidden,
            len(workers),
            vocabulary=0 if trained else model.vocab_size,
            groups=groups,
        )
        resolved, end_notes = _without_end(numbers)
        factor = workers_factor(resolved, len(workers))
        before = {} if resumption is None else resumption.automatic()
        own = None if resumption is None else resumption.own_budget
        return Resolution(
            asked=asked,
            resolved=resolved,
            lr=resolved.top_lr * factor,
            budget=own or Budget(steps=config.steps, tokens=config.tokens, seconds=config.time),
            resumption=resumption,
            leaves_strategy_open=config.strategy is None,
            automatic=_automatic(resolved, chosen, before),
            notes=(
                *end_notes,
                *_factor_note(resolved.top_lr, factor),
                *_other_defaults(resolved, chosen, before, len(workers)),
                *_optimizer_notes(resolved, chosen, model, hidden),
            ),
        )

    return tuple(map(with_strategy, likely))


def workers_factor(config: TrainConfig, n_workers: int) -> float:
    """The factor of `lr_workers`, by the number of workers with separate steps."""
    strategy = of(config, StrategyChoice)
    return optimizers.of(config).workers_factor(strategy.lr_rule, strategy.steppers(n_workers))


def _automatic(
    config: TrainConfig, asked: TrainConfig, before: Mapping[str, float]
) -> tuple[str, ...]:
    """The numbers that neither this call nor the first call of the run gave."""
    given = optimizers.open_numbers(asked)
    return tuple(
        name
        for name, value in optimizers.open_numbers(config).items()
        if value is not None and given.get(name) in (None, before.get(name))
    )


def _factor_note(lr: float, factor: float) -> list[str]:
    """A note on the step size, if it has a factor."""
    if factor == 1.0:
        return []
    return [
        f"lr {format_number(lr * factor)}: {format_number(factor)} of {format_number(lr)}, since "
        "each worker adds steps of its own (lr_workers)"
    ]


def _optimizer_notes(
    config: TrainConfig, asked: TrainConfig, model: ModelConfig, hidden: frozenset[str]
) -> list[str]:
    """Notes on a requested optimizer or look ahead that this model cannot use."""
    chosen, notes = optimizers.of(asked), list[str]()
    if chosen.beside and not hidden:
        notes.append(
            f"optimizer {chosen.name}: this {model.title} has no hidden matrix "
            f"(both sides at least {model.hidden_size / 2:g}, half its width), so "
            f"{chosen.beside} moves every parameter"
        )
    if config.strategy != asked.strategy:
        notes.append(
            f"predict last: {optimizers.of(config).name} has no moments of all workers, so it is "
            f"{config.prediction} (--moments shared keeps it)"
        )
    return notes


def _other_defaults(
    config: TrainConfig, asked: TrainConfig, before: Mapping[str, float], workers: int
) -> list[str]:
    """Notes on open numbers whose values differ from those at the start of the run."""
    given, numbers = optimizers.open_numbers(asked), optimizers.open_numbers(config)
    return [
        f"{name} {numbers[name]:.4g}: the default of {optimizers.of(config).name} in "
        f"{strategy_name(config)} with {workers} worker{'s' * (workers > 1)}; the run had {was:.4g}"
        for name, was in before.items()
        if given.get(name) is None and numbers.get(name) not in (None, was)
    ]


def _without_end(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The options, with a constant step size if the run has no end; and notes.

    Raises:
        ConfigError: the folder to follow does not exist.
    """
    if config.follow is None:
        return config, []
    if not expanded(config.follow).is_dir():
        raise ConfigError(
            f"follow: there is no folder {config.follow}; create it (mkdir), or name another"
        )
    note = f"follows {config.follow}: new text files there are trained once"
    if config.has_budget or schedules.of(config).falls:
        return config, [note]
    constant = config.having(schedule=schedules.Constant(warmup=0.0))
    return constant, [
        f"{note}, at a constant lr of {format_number(config.top_lr)}, until mlxhog stop or Ctrl-C",
    ]
