"""Optimizers: turn a gradient into a step, and write it, fused in one pass over shared memory.

Each is a direction, then a write. Native code computes the directions of most, element by element,
and writes them in the same pass; Muon, APOLLO and SOAP compute those of hidden matrices first.
There is one write, native or in Metal (`metal_steps.py`), with the same roundings.

Moments are private to a worker: every step already carries its history. AdamW and Muon may share
one pair between all workers, written under the locks of the parameters.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from mlxhog.config import optimizers
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizer import GROUPS
from mlxhog.config.rules import Selection
from mlxhog.config.strategy import FedBack, LookAhead, Sparse
from mlxhog.optim.adamw import AdamW
from mlxhog.optim.adan import Adan
from mlxhog.optim.apollo import Apollo
from mlxhog.optim.delay_feedback import DelayFeedback
from mlxhog.optim.gradients import Float32
from mlxhog.optim.groups import Grouped, Groups, factors
from mlxhog.optim.lion import Lion
from mlxhog.optim.muon import Muon
from mlxhog.optim.rule import Optimizer, OwnOptimizer, Pairs, Step, Target, Use, rule_of
from mlxhog.optim.sgd import SGD, Momentum
from mlxhog.optim.soap import Soap
from mlxhog.optim.sparsified import Sparsified


def for_model(
    config: TrainConfig,
    width: int,
    hidden: frozenset[str],
    workers: int,
    *,
    vocabulary: int = 0,
    groups: Groups | None = None,
) -> TrainConfig:
    """The configuration with values for options that depend on model and workers.

    Args:
        config: with a strategy that is not "auto".
        width: of the model.
        hidden: its hidden matrices.
        workers: of the run.
        vocabulary: number of rows of its embedding.
        groups: names of its other parameters by group; None has every group.
    """
    averages = config.strategy is not None and config.strategy.averages
    averaged = workers if averages else 1
    ahead = workers if config.prediction == "last" else 1
    chosen = optimizers.of(config)
    fitted = chosen.fitted(hidden=bool(hidden), averaged=averaged, ahead=ahead)
    present: Collection[str] = GROUPS
    if groups is not None:
        present = [name for name, members in groups.items() if members]
    rates = fitted.rates(width, vocabulary, averaged)
    changes: dict[str, Any] = {"optimizer": fitted.grouped(rates, present)}
    if config.lr is None:
        changes["lr"] = rates.lr
    strategy = config.strategy
    if isinstance(strategy, LookAhead) and strategy.predict == "last":
        if type(fitted) is not type(chosen) and not fitted.asks_to_share:
            changes["strategy"] = replace(strategy, predict="auto")
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
        hidden: names of the model's hidden matrices, for rules that treat them differently.
        groups: names of its other parameters by group; None moves all with the same lr.
        threads: number of threads that it may use.
        tokens_per_step: tokens whose mean gradient is one step, for `beta2_half_life`.

    Raises:
        ConfigError: a factor of lr is for a group that the model lacks.
    """
    choice = optimizers.of(config)
    if tokens_per_step is not None:
        choice = choice.per_step(tokens_per_step)
    shared = config.shares_moments
    rule = rule_of(choice, Use(hidden=hidden, threads=threads, seed=config.seed, shared=shared))
    if groups is not None and (by_name := factors(choice, groups)):
        rule = Grouped(rule, by_name)
    strategy = config.strategy
    if isinstance(strategy, FedBack) and strategy.delay_feedback:
        return DelayFeedback(rule)
    if isinstance(strategy, Sparse) and (selection := strategy.selection()) is not None:
        return Sparsified(rule, selection, error_feedback=strategy.error_feedback)
    return rule


__all__ = [
    "SGD", "AdamW", "Adan", "Apollo", "DelayFeedback", "Float32", "Grouped", "Groups", "Lion",
    "Momentum", "Muon", "Optimizer", "OwnOptimizer", "Pairs", "Selection", "Soap", "Sparsified",
    "Step", "Target", "Use", "build", "for_model", "rule_of",
]  # fmt: skip
