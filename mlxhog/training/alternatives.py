"""The strategies that a run may have: what each needs of the arena, and the arena of all of them.

Mostly there is one. `--strategy auto` with several workers has two until the workers have been
measured (`evenness.py`): workers start once, in an arena for whichever it will be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from mlxhog import optim, strategies
from mlxhog.arena import Layout
from mlxhog.config.config import TrainConfig
from mlxhog.config.local_strategies import Copies
from mlxhog.data import clients, prepare, stream
from mlxhog.data.batches import Batches
from mlxhog.data.clients import ClientBatches, Division
from mlxhog.data.tokens import TokenFile
from mlxhog.models.families import ModelConfig
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import Optimizer
from mlxhog.strategies import Strategy
from mlxhog.strategies.local import Local
from mlxhog.training.job import plan_layout
from mlxhog.training.memory import Memory
from mlxhog.training.resolve import Resolved


@dataclass(frozen=True)
class Alternative:
    """A strategy that the run may have, with what depends on it before the arena is laid out.

    Attributes:
        resolved: the options with it.
        strategy: for the workers that the run begins with.
        optimizer: with its numbers under this strategy.
        batches: opens what is trained on.
        n_tickets: batches of an epoch.
        division: of the text among clients.
    """

    resolved: Resolved
    strategy: Strategy
    optimizer: Optimizer
    batches: Callable[[], Batches | ClientBatches]
    n_tickets: int
    division: Division | None

    @property
    def config(self) -> TrainConfig:
        """The options."""
        return self.resolved.config

    @classmethod
    def of(
        cls,
        resolved: Resolved,
        model: ModelConfig,
        hidden: frozenset[str],
        n_workers: int,
        data: prepare.Prepared,
        train: TokenFile,
        stored: Path | None,
    ) -> Self:
        """Build strategy and optimizer.

        Args:
            resolved: the options with this strategy.
            model: the architecture.
            hidden: its hidden matrices.
            n_workers: that the run begins with.
            data: its token files.
            train: that of the training text.
            stored: the folder of a run that is resumed.

        Raises:
            ConfigError, DataError: these workers cannot train this model so, or divide its text.
        """
        strategy = strategies.build(resolved.config, n_workers)
        strategy.check(model)
        strategy, batches, n_tickets, division = _batches(strategy, data, train, stored=stored)
        optimizer = optim.build(resolved.config, hidden, tokens_per_step=strategy.tokens_per_step)
        return cls(resolved, strategy, optimizer, batches, n_tickets, division)


def laid_out(
    alternatives: Sequence[Alternative],
    memory: Memory,
    spec: Mapping[str, ParamSpec],
    tables: Mapping[str, tuple[str, int]],
    *,
    live: bool,
) -> tuple[list[Alternative], Layout]:
    """One arena for whichever of the alternatives it will be, with slots for workers that join."""
    ways = list(alternatives)
    k = next((k for k, way in enumerate(ways) if not way.strategy.fixed), 0)  # others can join it

    def lay_out(strategy: Strategy) -> Layout:
        needs = [(way.strategy, way.optimizer) for way in ways]
        needs[k] = (strategy, ways[k].optimizer)
        (first, optimizer), *others = needs
        return plan_layout(
            spec, first, optimizer, ways[0].n_tickets, tables, live=live, others=others
        )

    strategy, layout = memory.with_free_slots(ways[k].strategy, lay_out)
    ways[k] = replace(ways[k], strategy=strategy)
    return ways, layout


def _batches(
    strategy: Strategy, data: prepare.Prepared, train: TokenFile, *, stored: Path | None
) -> tuple[Strategy, Callable[[], Batches | ClientBatches], int, Division | None]:
    """The batches of the text, or of each client's part of it.

    Args:
        strategy: of the run.
        data: its token files.
        train: that of the training text.
        stored: the folder of a run that is resumed.

    Returns:
        The strategy, which may have to know of each client's batches; what opens the batches; how
        many an epoch has; and the division.

    Raises:
        ConfigError, DataError: the text cannot be divided so.
    """
    config, size = strategy.config, strategy.config.sequences_per_ticket
    rows: dict[str, Any] = {
        "seq_len": config.seq_len,
        "batch_size": size,
        "seed": config.seed,
        "frozen": config.context == "frozen",
    }
    division = None
    if isinstance(config.strategy, Copies) and config.strategy.split != "none":
        chosen = config.strategy
        division = clients.divided(
            train,
            data.source,
            data.rule,
            clients=chosen.clients or strategy.workers,
            workers=strategy.workers,
            by=chosen.split_by,
            alpha=chosen.split_alpha,
            seed=config.seed,
            least_tokens=size * config.seq_len + 1,
            stored=stored,
        )
    if division is not None and isinstance(strategy, Local):
        divided = partial(ClientBatches.open, data.train, division.documents, **rows)
        tickets = divided().tickets
        return replace(strategy, client_tickets=tickets), divided, sum(tickets), division
    n_tickets = math.ceil(train.n_sequences(config.seq_len) / size)
    if config.follow is not None:
        n_tickets = stream.TICKETS
    return strategy, partial(Batches.open, data.train, **rows), n_tickets, division
