"""Optimizers: turn a gradient into a step, and write it, fused in one pass over shared memory.

Each is a direction, then a write (`rule.py`). Native code computes most directions element by
element, in the pass that writes them (`elementwise.py`); Muon, APOLLO and SOAP compute those of
hidden matrices first. Metal writes with the same roundings (`metal_steps.py`).

Moments are private to a worker: every step already carries its history. AdamW and Muon may share
one pair between all workers, written under the locks of the parameters.

Nothing here imports NumPy before it is used, so that help and errors about options are fast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

from mlxhog.config.components import OPTIMIZERS
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.optim.apollo import Apollo, ApolloMini
from mlxhog.optim.choice import GROUPS, Adaptive, Averaging, Decayed, OptimizerChoice, Use
from mlxhog.optim.delay_feedback import DelayFeedback
from mlxhog.optim.elementwise import SGD, AdamW, Adan, Lion, Momentum
from mlxhog.optim.gradients import Float32
from mlxhog.optim.groups import Grouped, Groups, factors
from mlxhog.optim.muon import Muon
from mlxhog.optim.rule import Optimizer, Pairs, UpdateStep, UpdateTarget, directions, write
from mlxhog.optim.soap import Soap
from mlxhog.optim.sparsified import Selection, Sparse, Sparsified
from mlxhog.optim.tables import WithTables

for _optimizer in (Muon, AdamW, Adan, Apollo, ApolloMini, Lion, Momentum, SGD, Soap):
    OPTIMIZERS.register(_optimizer)
DEFAULT: Final = Muon


def chosen(config: TrainConfig) -> OptimizerChoice:
    """Return the optimizer of a configuration; the default if it is open."""
    return config.optimizer or DEFAULT()


def by_name(name: str) -> OptimizerChoice:
    """Return the optimizer of a name, with its defaults; an unknown one is `UnknownChoice`."""
    choice: Any = OPTIMIZERS.find(name)
    made: OptimizerChoice = choice()
    return made


def open_numbers(config: TrainConfig) -> dict[str, object]:
    """Return lr and the optimizer's numbers that may be "auto", by their flat names."""
    choice = chosen(config)
    numbers = {
        spec.flat: getattr(choice, name)
        for name, spec in options(type(choice)).items()
        if spec.optional and spec.none == "auto"
    }
    return {"lr": config.lr, **dict(sorted(numbers.items()))}


def for_model(
    config: TrainConfig, width: int, hidden: frozenset[str], workers: int, *, vocabulary: int = 0
) -> TrainConfig:
    """The configuration with values for options that depend on model and workers.

    The model has a `width`, names of `hidden` matrices, and `vocabulary` rows of its embedding.

    Raises:
        ConfigError: an optimizer of the user's own would be replaced by one of the package.
    """
    strategy, own = config.strategy, chosen(config)
    averaged = workers if strategy is not None and strategy.averages else 1
    ahead = workers if config.prediction == "last" else 1
    fitted = own.fitted(hidden=bool(hidden), ahead=ahead)
    if type(fitted) is not type(own) and own.is_own():
        raise ConfigError(
            f"the model has no hidden matrices, so {fitted.name} would take the place of your "
            f"optimizer {own.name}; define its `fitted`, or take optimizer={fitted.name}"
        )
    changes: dict[str, Any] = {"optimizer": fitted}
    if config.lr is None:
        changes["lr"] = fitted.default_lr(width, vocabulary, averaged)
    if type(fitted) is not type(own) and config.prediction == "last":
        if not fitted.shares_moments(lock_free=False):  # no steps that workers share to look at
            changes["strategy"] = replace(cast(Any, strategy), predict="auto")
    return config.having(**changes)


def build(
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
    choice = chosen(config)
    if tokens_per_step is not None and isinstance(choice, Averaging) and choice.beta2_half_life:
        beta2 = 2.0 ** (-tokens_per_step / choice.beta2_half_life)
        choice = replace(choice, beta2=beta2, beta2_half_life=None)
    use = Use(hidden=hidden, threads=threads, seed=config.seed, shared=config.shares_moments)
    rule: Optimizer = replace(choice, use=use)
    if groups is not None and (by_name := factors(choice, groups)):
        rule = Grouped(rule, by_name)
    strategy: Any = config.strategy
    if strategy is not None and strategy.delay_feedback:
        rule = DelayFeedback(rule)
    if isinstance(strategy, Sparse) and (selection := Selection.parse(strategy.sparsify)):
        rule = Sparsified(rule, selection, strategy.error_feedback)
    if groups is not None and (tables := groups.get("table")):
        rule = WithTables(rule, tables, config.ngram_lr / config.top_lr)
    return rule


__all__ = [
    "DEFAULT", "GROUPS", "SGD", "AdamW", "Adan", "Adaptive", "Apollo", "ApolloMini", "Decayed",
    "DelayFeedback", "Float32", "Grouped", "Groups", "Lion", "Momentum", "Muon", "Optimizer",
    "OptimizerChoice", "Pairs", "Selection", "Soap", "Sparsified", "UpdateStep", "UpdateTarget",
    "Use", "WithTables", "build", "by_name", "chosen", "directions", "for_model", "open_numbers",
    "write",
]  # fmt: skip
