"""The strategies that a run may get, the needs of each, and one arena that fits all of them.

Usually there is one. `--strategy auto` with several workers has two: a measurement chooses the
first (`choose_strategy.py`), and the run may change to the other (`change_strategy.py`). Workers
start once, in an arena that fits both.
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
from mlxhog.config import schedules
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.local_strategies import Copies
from mlxhog.config.strategies import Sync
from mlxhog.data import clients, prepare, stream
from mlxhog.data.batches import Batches
from mlxhog.data.clients import ClientBatches, Division
from mlxhog.data.tokens import TokenFile
from mlxhog.models import families, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import Optimizer
from mlxhog.strategies import Strategy
from mlxhog.strategies.local import Local
from mlxhog.training import lengths
from mlxhog.training.job import plan_layout
from mlxhog.training.memory import Memory
from mlxhog.training.resolve import Resolution
from mlxhog.training.resume import Resumption


@dataclass(frozen=True)
class Alternative:
    """A strategy that the run may get, with the parts of the plan that depend on it.

    Attributes:
        resolution: the options, resolved for this strategy.
        strategy: built for the workers at the start.
        optimizer: with its numbers under this strategy.
        batches: opens the training batches.
        n_tickets: batches per epoch.
        division: of the text among clients.
    """

    resolution: Resolution
    strategy: Strategy
    optimizer: Optimizer
    batches: Callable[[], Batches]
    n_tickets: int
    division: Division | None

    @property
    def config(self) -> TrainConfig:
        """The options."""
        return self.resolution.resolved

    @classmethod
    def of(
        cls,
        resolution: Resolution,
        model: ModelConfig,
        hidden: frozenset[str],
        n_workers: int,
        data: prepare.Prepared,
        train: TokenFile,
        *,
        is_open: bool,
    ) -> Self:
        """Build strategy and optimizer.

        Args:
            resolution: of the options, with this strategy.
            model: the architecture.
            hidden: names of its hidden matrices.
            n_workers: workers at the start.
            data: the prepared token files.
            train: the token file of the training text.
            is_open: whether the run may change to another strategy.

        Raises:
            ConfigError, DataError: the strategy does not fit this model or this text.
        """
        config, resumption = resolution.resolved, resolution.resumption
        stored = None if resumption is None else resumption.run.directory
        strategy = strategies.build(config, n_workers)
        if is_open:
            strategy = replace(strategy, open=True)
        strategy.check(model)
        strategy = strategy.with_tables(ngrams.of(model))
        strategy, batches, n_tickets, division = _batches(
            config, strategy, data, train, stored=stored
        )
        optimizer = optim.build(
            config,
            hidden,
            groups=families.rate_groups(model),
            tokens_per_step=strategy.tokens_per_step,
        )
        return cls(resolution, strategy, optimizer, batches, n_tickets, division)

    @property
    def _batches_per_step(self) -> float:
        return mean_batches_per_step(self.strategy, self.resolution.resumption)

    @property
    def _budget(self) -> Budget:
        """The budget of this call."""
        budget, resumption = self.resolution.budget, self.resolution.resumption
        return budget if resumption is None else resumption.in_steps(budget, self._batches_per_step)

    def budget_in_steps(self, train: TokenFile) -> Budget:
        """The budget of this call, with passes over the text converted to steps."""
        return lengths.in_steps(
            self._budget,
            train,
            epochs=self.config.epochs,
            seq_len=self.config.seq_len,
            batch_size=self.config.sequences_per_ticket,
            n_tickets=self.n_tickets,
            batches_per_step=self._batches_per_step,
        )

    def notes(self, train: TokenFile) -> list[str]:
        """Notes for the user on a run with this strategy."""
        config, notes = self.config, list(self.resolution.notes)
        if self.division is not None:
            notes.append(str(self.division))
        if config.follow is None:
            of_batch = config.sequences_per_ticket * config.seq_len
            notes += lengths.repetition(
                self._budget,
                train,
                seq_len=config.seq_len,
                tokens_per_step=self._batches_per_step * of_batch,
            )
        return notes

    def schedule(self) -> Callable[[float], schedules.Rate]:
        """Return a factory of the schedule; an epoch counts the batches that steps drop, too."""
        chosen, resumption = self.strategy.choice, self.resolution.resumption
        dropped = chosen.backup_workers if isinstance(chosen, Sync) else 0
        epochs = schedules.Epochs(self.n_tickets, self._batches_per_step + dropped)
        if resumption is not None:
            at, done = resumption.position(), 0
            if at is not None:
                done = at["epoch"] * at["n"] + at["watermark"] + len(at["done"])
            version = int(resumption.checkpoint.state["version"])
            epochs = replace(epochs, version=version, batches=done)
        return partial(schedules.of(self.config).of_run, self.resolution.lr, epochs)


def mean_batches_per_step(strategy: Strategy, resumption: Resumption | None) -> float:
    """Batches per step, on average over a budget in steps."""
    state = {} if resumption is None else resumption.checkpoint.state
    return strategy.mean_batches_per_step(went_async=bool(state.get("went_async")))


def laid_out(
    alternatives: Sequence[Alternative],
    memory: Memory,
    max_workers: int | None,
    spec: Mapping[str, ParamSpec],
    tables: Mapping[str, tuple[str, int]],
    *,
    live: bool,
) -> tuple[list[Alternative], Layout]:
    """Lay out one arena that fits every alternative, with free slots for workers that join."""
    ways = list(alternatives)
    k = next((k for k, way in enumerate(ways) if not way.strategy.fixed), 0)  # others can join it

    def lay_out(strategy: Strategy) -> Layout:
        needs = [(way.strategy, way.optimizer) for way in ways]
        needs[k] = (strategy, ways[k].optimizer)
        (first, optimizer), *others = needs
        return plan_layout(
            spec, first, optimizer, ways[0].n_tickets, tables, live=live, others=others
        )

    strategy, layout = memory.with_free_slots(ways[k].strategy, max_workers, lay_out)
    ways[k] = replace(ways[k], strategy=strategy)
    return ways, layout


def _batches(
    config: TrainConfig,
    strategy: Strategy,
    data: prepare.Prepared,
    train: TokenFile,
    *,
    stored: Path | None,
) -> tuple[Strategy, Callable[[], Batches], int, Division | None]:
    """The batches of the text, or of each client's part of it.

    Args:
        config: of the run.
        strategy: of the run.
        data: the prepared token files.
        train: the token file of the training text.
        stored: the folder of the run that is resumed.

    Returns:
        The strategy, with each client's number of batches where it needs them; a function that
        opens the batches; batches per epoch; and the division.

    Raises:
        ConfigError, DataError: the text cannot be divided in this way.
    """
    size = config.sequences_per_ticket
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
            alpha=chosen.split_alpha,
            seed=config.seed,
            least_tokens=size * config.seq_len + 1,
            stored=stored,
        )
    if division is not None and isinstance(strategy, Local):
        divided = partial(ClientBatches.open, data.train, documents=division.documents, **rows)
        tickets = divided().tickets
        return replace(strategy, client_tickets=tickets), divided, sum(tickets), division
    n_tickets = math.ceil(train.n_sequences(config.seq_len) / size)
    if config.follow is not None:
        n_tickets = stream.TICKETS
    return strategy, partial(Batches.open, data.train, **rows), n_tickets, division
