"""Training strategies: each a class with its numbers, its answers to a run, and its worker."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast

from mlxhog.config.components import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.optim import (
    Averaging,
    DelayFeedback,
    Grouped,
    Groups,
    Optimizer,
    Selection,
    Sparsified,
    Use,
    WithTables,
    factors,
    optimizer_of,
)
from mlxhog.strategies.averaging import AvgRuns, DiLoCo, FedProx, LocalSGD, Scaffold
from mlxhog.strategies.hogwild import Hogwild, Serial
from mlxhog.strategies.in_order import RoundRobin, Sim
from mlxhog.strategies.locked import SSP, Aig, AsyncPS, Locked
from mlxhog.strategies.strategy import RunFacts, Strategy, prediction, shares_moments, strategy_of
from mlxhog.strategies.sync import Sync
from mlxhog.strategies.worker import Idle, Lease, StrategyWorker, TicketPart, WriteResult

for _strategy in (
    Sync, Hogwild, Serial, RoundRobin, LocalSGD, AvgRuns, FedProx, Scaffold, DiLoCo, AsyncPS, SSP,
    Locked, Aig, Sim,
):  # fmt: skip
    STRATEGIES.register(_strategy)


def build(config: TrainConfig, workers: int, max_workers: int = 0) -> Strategy:
    """The strategy that a configuration has chosen, for a run with `workers` at the start.

    Raises:
        ConfigError: its runs do not repeat although they have to, it cannot have this number of
            workers, or a class of the user's own would be replaced by one that an option takes.
    """
    chosen = strategy_of(config)
    assert chosen is not None, "a strategy that is open has no workers"
    if config.determinism == "rounds" and not chosen.repeats:
        every: Any = STRATEGIES.known().items()
        repeating = ", ".join(name for name, one in every if one.repeats)
        raise ConfigError(
            f"determinism=rounds: a run of strategy {chosen.name} is never the same twice; take "
            f"one of {repeating}, or record hogwild: determinism=record"
        )
    kind, option = type(chosen), ""
    if config.determinism in ("record", "replay"):
        from mlxhog.strategies.recorded import Recorded

        kind, option = Recorded, f"determinism={config.determinism}"
    elif isinstance(chosen, Hogwild) and chosen.blocks == "disjoint":
        from mlxhog.strategies.disjoint import Disjoint

        kind, option = Disjoint, "blocks=disjoint"
    if option and chosen.is_own():
        raise ConfigError(
            f"{option} has workers of its own, which would take the place of those of your "
            f"strategy {chosen.name}; leave it out, or take strategy=hogwild"
        )
    numbers = {field.name: getattr(chosen, field.name) for field in fields(kind)}
    resumed = config.resume is not None
    facts = RunFacts(
        sequences_per_ticket=config.sequences_per_ticket,
        seq_len=config.seq_len,
        seed=config.seed,
        clip=config.clip,
        overlap=config.overlap,
        determinism=config.determinism,
        prediction=prediction(config),
        budget=(None, None) if resumed else (config.steps, config.tokens),
        reset_optimizer=config.reset_optimizer,
        workers_factor=optimizer_of(config).workers_factor,
    )
    return replace(kind(**numbers), run=facts, workers=workers, max_workers=max_workers)


def for_model(
    config: TrainConfig, width: int, hidden: frozenset[str], workers: int, *, vocabulary: int = 0
) -> TrainConfig:
    """The configuration with values for options that depend on model and workers.

    The model has a `width`, names of `hidden` matrices, and `vocabulary` rows of its embedding.

    Raises:
        ConfigError: an optimizer of the user's own would be replaced by one of the package.
    """
    strategy, own = strategy_of(config), optimizer_of(config)
    averaged = workers if strategy is not None and strategy.averages else 1
    ahead = workers if prediction(config) == "last" else 1
    fitted = own.fitted(hidden=bool(hidden), ahead=ahead)
    if type(fitted) is not type(own) and own.is_own():
        raise ConfigError(
            f"the model has no hidden matrices, so {fitted.name} would take the place of your "
            f"optimizer {own.name}; define its `fitted`, or take optimizer={fitted.name}"
        )
    changes: dict[str, Any] = {"optimizer": fitted}
    if config.lr is None:
        changes["lr"] = fitted.default_lr(width, vocabulary, averaged)
    if type(fitted) is not type(own) and prediction(config) == "last":
        if not fitted.shares_moments(lock_free=False):  # no steps that workers share to look at
            changes["strategy"] = replace(cast(Any, strategy), predict="auto")
    return config.having(**changes)


def build_optimizer(
    config: TrainConfig,
    hidden: frozenset[str] = frozenset(),
    *,
    groups: Groups | None = None,
    threads: int = 1,
    tokens_per_step: int | None = None,
) -> Optimizer:
    """The optimizer of a configuration, with its sparsification or delay feedback.

    Args:
        config: its options.
        hidden: names of the model's hidden matrices.
        groups: names of its other parameters by group, its tables included; None has one lr.
        threads: number of threads that it may use.
        tokens_per_step: tokens whose mean gradient is one step, for `beta2_half_life`.

    Raises:
        ConfigError: a factor of lr is for a group that the model lacks.
    """
    choice = optimizer_of(config)
    if tokens_per_step is not None and isinstance(choice, Averaging) and choice.beta2_half_life:
        beta2 = 2.0 ** (-tokens_per_step / choice.beta2_half_life)
        choice = replace(choice, beta2=beta2, beta2_half_life=None)
    use = Use(hidden=hidden, threads=threads, seed=config.seed, shared=shares_moments(config))
    rule: Optimizer = replace(choice, use=use)
    if groups is not None and (by_name := factors(choice, groups)):
        rule = Grouped(rule, by_name)
    if (strategy := strategy_of(config)) is not None:
        rule = DelayFeedback(rule) if strategy.delay_feedback else rule
        if (selection := Selection.parse(strategy.sparsify)) is not None:
            rule = Sparsified(rule, selection, strategy.error_feedback)
    if groups is not None and (tables := groups.get("table")):
        rule = WithTables(rule, tables, config.ngram_lr / config.top_lr)
    return rule


__all__ = [
    "SSP", "Aig", "AsyncPS", "AvgRuns", "DiLoCo", "FedProx", "Hogwild", "Idle", "Lease",
    "LocalSGD", "Locked", "RoundRobin", "Scaffold", "Serial", "Sim", "Strategy", "StrategyWorker",
    "Sync", "TicketPart", "WriteResult", "build", "build_optimizer", "for_model", "prediction",
    "shares_moments", "strategy_of",
]  # fmt: skip
