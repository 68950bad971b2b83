"""Training strategies, and the strategy and optimizer that the options of a run build."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Final, cast

from mlxhog import optim
from mlxhog.config.components import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.optim import optimizer_of
from mlxhog.strategies.averaging import AvgRuns, DiLoCo, FedProx, LocalSGD, Scaffold
from mlxhog.strategies.collect import Collect
from mlxhog.strategies.hogwild import Hogwild, Serial
from mlxhog.strategies.in_order import RoundRobin, Sim
from mlxhog.strategies.locked import SSP, Aig, AsyncPS, Locked
from mlxhog.strategies.strategy import (
    RunFacts,
    Strategy,
    prediction_of,
    shares_moments,
    strategy_of,
)
from mlxhog.strategies.sync import Sync
from mlxhog.strategies.worker import BatchSize, Idle, Lease, StrategyWorker, TicketPart, WriteResult

ADAPTER_LR: Final = 5.0
"""Learning rate of an adapter over that of all parameters; `benchmarks/fine_tuning.py` found 2.5
between searched rates, of which the default for all parameters was half."""

for _strategy in (
    Sync, Collect, Hogwild, Serial, RoundRobin, LocalSGD, AvgRuns, FedProx, Scaffold, DiLoCo,
    AsyncPS, SSP, Locked, Aig, Sim,
):  # fmt: skip
    STRATEGIES.register(_strategy)


def build(config: TrainConfig, workers: int, max_workers: int = 0) -> Strategy:
    """Return the strategy of a configuration, for a run with `workers` at the start.

    Raises:
        ConfigError: it is not deterministic although it has to be, it cannot have this number of
            workers, or an option would replace a class of the user's own.
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
    own = {field.name: getattr(chosen, field.name) for field in fields(kind)}
    resumed = config.resume is not None
    facts = RunFacts(
        sequences_per_ticket=config.sequences_per_ticket,
        micro_batch=config.micro_batch,
        seq_len=config.seq_len,
        seed=config.seed,
        clip=config.clip,
        overlap=config.overlap,
        determinism=config.determinism,
        prediction=prediction_of(config),
        budget=(None, None) if resumed else (config.steps, config.tokens),
        reset_optimizer=config.reset_optimizer,
        workers_factor=optimizer_of(config).workers_factor,
    )
    return replace(kind(**own), run=facts, workers=workers, max_workers=max_workers)


def for_model(
    config: TrainConfig, width: int, hidden: frozenset[str], workers: int, *, vocabulary: int = 0
) -> TrainConfig:
    """Return the configuration with values for options that depend on model and workers.

    The model has a `width`, names of `hidden` matrices, and `vocabulary` rows of its embedding.

    Raises:
        ConfigError: an optimizer of the user's own would be replaced by one of the package.
    """
    strategy, own = strategy_of(config), optimizer_of(config)
    averaged = workers if strategy is not None and strategy.averages else 1
    predicted = workers if prediction_of(config) == "last" else 1
    fitted = own.fitted(hidden=bool(hidden), predicted=predicted)
    if type(fitted) is not type(own) and own.is_own():
        raise ConfigError(
            f"the model has no hidden matrices, so {fitted.name} would take the place of your "
            f"optimizer {own.name}; define its `fitted`, or take optimizer={fitted.name}"
        )
    changes: dict[str, Any] = {"optimizer": fitted}
    if config.lr is None:
        lr = fitted.default_lr(width, vocabulary, averaged)
        changes["lr"] = lr if config.adapter is None else ADAPTER_LR * lr
    if type(fitted) is not type(own) and prediction_of(config) == "last":
        if not fitted.shares_moments(lock_free=False):  # no updates to extrapolate
            changes["strategy"] = replace(cast(Any, strategy), predict="auto")
    return config.having(**changes)


def build_optimizer(
    config: TrainConfig,
    hidden: frozenset[str] = frozenset(),
    *,
    groups: optim.Groups | None = None,
    threads: int = 1,
    tokens_per_step: int | None = None,
) -> optim.Optimizer:
    """Return the optimizer of a configuration, with its sparsification or delay feedback.

    Args:
        config: the options of the run.
        hidden: names of the model's hidden matrices.
        groups: names of its other parameters by group, tables included; None has one lr.
        threads: number of threads that it may use.
        tokens_per_step: tokens whose mean gradient is one update, for `beta2_half_life`.

    Raises:
        ConfigError: a factor of lr is for a group that the model lacks.
    """
    own = optimizer_of(config)
    if isinstance(own, optim.MomentAverages) and own.beta2_half_life and tokens_per_step:
        beta2 = 2.0 ** (-tokens_per_step / own.beta2_half_life)
        own = replace(own, beta2=beta2, beta2_half_life=None)
    run = optim.RunContext(hidden, threads, config.seed, shares_moments(config))
    rule: optim.Optimizer = replace(own, run=run)
    if groups is not None and (by_name := optim.factors(own, groups)):
        rule = optim.GroupedRates(rule, by_name)
    if (strategy := strategy_of(config)) is not None:
        rule = optim.DelayFeedback(rule) if strategy.delay_feedback else rule
        if (selection := optim.Selection.parse(strategy.sparsify)) is not None:
            rule = optim.Sparsified(rule, selection, strategy.error_feedback)
    if groups is not None and (tables := groups.get("table")):
        rule = optim.WithTables(rule, tables, config.ngram_lr / config.top_lr)
    return rule


__all__ = [
    "SSP", "Aig", "AsyncPS", "AvgRuns", "BatchSize", "Collect", "DiLoCo", "FedProx", "Hogwild",
    "Idle", "Lease", "LocalSGD", "Locked", "RoundRobin", "Scaffold", "Serial", "Sim", "Strategy",
    "StrategyWorker", "Sync", "TicketPart", "WriteResult", "build", "build_optimizer", "for_model",
    "prediction_of", "shares_moments", "strategy_of",
]  # fmt: skip
