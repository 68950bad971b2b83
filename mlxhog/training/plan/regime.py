"""What a strategy decides of a run: its options, optimizer, batches, budget and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxhog import optim, strategies
from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_count, format_number
from mlxhog.base.workers import WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.config.components import Component
from mlxhog.config.config import TrainConfig
from mlxhog.config.train_options import INITIAL_WEIGHTS
from mlxhog.data import prepare
from mlxhog.data.batches import Batches, Growth
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.optim import schedules
from mlxhog.strategies import Strategy
from mlxhog.strategies.local import Local
from mlxhog.training.plan import strategy_rule
from mlxhog.training.plan.resume import Resumption
from mlxhog.training.plan.values import Regime, epochs_read

if TYPE_CHECKING:
    from mlxhog.data.clients import Division

MANY_EPOCHS = 4.0
"""Up to about four epochs, repeated text is nearly as useful as new text; after that its use
declines (Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264)."""


def regime_of(
    choice: Strategy, asked: TrainConfig, config: TrainConfig, model: ModelConfig,
    workers: Sequence[WorkerSpec], resumption: Resumption | None, data: prepare.Prepared, *,
    is_open: bool,
) -> Regime:  # fmt: skip
    """Decide what depends on the strategy; `is_open` where the run may change it."""
    notes, n_workers, train = list[str](), len(workers), data.train
    hidden, groups = families.hidden_matrices(model), families.rate_groups(model)

    # Open options.
    chosen = config.having(strategy=choice)
    is_new = config.init_from is None and (
        resumption is None or resumption.stored.get("init_from") in (None, "none")
    )
    vocabulary = model.vocab_size if is_new else 0  # trained rows need no large updates
    resolved = strategies.for_model(
        chosen, model.hidden_size, hidden, n_workers, vocabulary=vocabulary
    )
    if (new := resolved.follow) is not None:
        if not expanded(new).is_dir():
            raise ConfigError(
                f"follow: there is no folder {new}; create it (mkdir), or name another"
            )
        text = f"follows {new}: new text files there are trained on once"
        if not (resolved.has_budget or schedules.schedule_of(resolved).falls):  # the run has no end
            constant = format_number(resolved.top_lr)
            text += f", at a constant lr of {constant}, until mlxhog stop or Ctrl-C"
            resolved = resolved.having(schedule=schedules.Constant(warmup=0.0))
        notes.append(text)
    steps = strategies.strategy_of(resolved) or choice
    factor = optim.optimizer_of(resolved).workers_factor(
        steps.lr_workers, steps.steppers(n_workers)
    )
    lr, before = resolved.top_lr * factor, {} if resumption is None else resumption.automatic()
    if factor != 1.0:
        notes.append(
            f"lr {format_number(lr)}: {format_number(factor)} of {format_number(resolved.top_lr)}, "
            "since each worker applies updates of its own (lr_workers)"
        )
    given, decided = optim.open_hyperparameters(chosen), optim.open_hyperparameters(resolved)
    if (named := optim.optimizer_of(chosen)).beside and not hidden:
        notes.append(
            f"optimizer {named.name}: this {model.title} has no hidden matrix "
            f"(both sides at least {model.hidden_size / 2:g}, half its width), so "
            f"{named.beside} moves every parameter"
        )
    if is_open and config.strategy is None:
        regime = None if resumption is None else resumption.state["regime"]
        notes.append(strategy_rule.first_note(choice.name, regime))

    # The strategy and its batches.
    strategy = strategies.build(resolved, n_workers)
    strategy.check(model)
    folder = None if resumption is None else resumption.run.directory
    division = strategy.division(data, train, folder) if isinstance(strategy, Local) else None
    grown = () if resumption is None else resumption.grown()
    if division is not None and resumption is not None and resumption.text != "same":
        raise resumption.other_text(", and its text is divided among clients")
    strategy, batches, n_tickets = _batches(resolved, strategy, division, train, grown)
    notes += [] if division is None else [str(division)]
    per_step = strategy.batches_per_step()

    # The budget and the learning rates.
    budget = Budget(steps=config.steps, tokens=config.tokens, seconds=config.time)
    if resumption is not None:
        budget = resumption.budget(budget, per_step)
    n_of_text = n_tickets if resolved.follow is None else _n_tickets(resolved, train)
    epoch_tokens = train.epoch_tokens(resolved.seq_len)
    of_ticket = epoch_tokens / n_of_text  # the last of an epoch may be short
    budget = _in_steps(budget, resolved, train, n_tickets, per_step, of_ticket)
    mean_tokens = of_ticket * strategy_rule.mean_batches_per_step(config, strategy)
    if resolved.follow is None:
        read = epochs_read(budget, epoch_tokens=epoch_tokens, tokens_per_step=mean_tokens)
        if read is not None and read > MANY_EPOCHS:
            notes.append(
                f"the text of {format_count(epoch_tokens)} tokens is read {read:.3g} times in this "
                f"budget; beyond {MANY_EPOCHS:g} a model mostly memorizes it: use more text, a "
                "smaller budget, or a smaller model"
            )
    stored_choice = config.strategy if is_open or config.strategy is None else resolved.strategy
    return Regime(
        config=resolved,
        stored=_stored(asked, resolved, resumption, stored_choice),
        automatic=tuple(
            name
            for name, value in decided.items()
            if value is not None and given.get(name) in (None, before.get(name))
        ),
        notes=tuple(notes),
        strategy=strategy,
        optimizer=strategies.build_optimizer(
            resolved, hidden, groups=groups, tokens_per_step=strategy.tokens_per_step
        ),
        batches=batches,
        n_tickets=n_tickets,
        grown=grown,
        division=division,
        epoch_tokens=epoch_tokens,
        mean_tokens_per_step=mean_tokens,
        budget=budget,
        schedule=_schedule(resolved, strategy, lr, n_tickets, resumption),
    )


def _stored(
    asked: TrainConfig, resolved: TrainConfig, begin: Resumption | None, strategy: Component | None
) -> TrainConfig:
    """The options for the run's folder."""
    kept, changes = {} if begin is None else begin.stored, dict[str, Any]()
    if begin is not None or asked.init_from is not None:  # they come from a checkpoint
        names = [name for name in ("model", "tokenizer") if getattr(asked, name) == "auto"]
        changes = {name: kept.get(name, "auto") for name in names}
    if strategy != resolved.strategy:
        changes["strategy"] = strategy
    if begin is not None:
        origins = {name: kept[name] for name in (*INITIAL_WEIGHTS, "name") if name in kept}
        changes |= {**origins, "resume": None, "reset_optimizer": False}
    return replace(resolved, **changes) if changes else resolved


def _batches(
    config: TrainConfig,
    strategy: Strategy,
    division: Division | None,
    train: TokenFile,
    grown: tuple[Growth, ...],
) -> tuple[Strategy, Callable[[], Batches], int]:
    """The batches of the text, or of each client's part of it."""
    size, frozen = config.sequences_per_ticket, config.context == "frozen"
    of_epoch, full = train.epoch_tokens(config.seq_len), size * config.seq_len
    rows: dict[str, Any] = dict(
        seq_len=config.seq_len, batch_size=size, seed=config.seed, frozen=frozen
    )
    if division is not None and isinstance(strategy, Local):
        from mlxhog.data.clients import ClientBatches

        divided = partial(ClientBatches, train, documents=division.documents, **rows)
        tickets = divided().tickets  # the last one of each client may be short
        epoch = sum(tickets), math.ceil(of_epoch / sum(tickets)), of_epoch
        return replace(strategy, client_tickets=tickets, epoch=epoch), divided, sum(tickets)
    n_tickets = _n_tickets(config, train)
    if config.follow is not None:
        from mlxhog.data import stream

        n_tickets = stream.TICKETS
    elif train.rows(config.seq_len) is None:
        strategy = replace(strategy, epoch=(n_tickets, full, of_epoch))
    return strategy, partial(Batches, train, grown=grown, **rows), n_tickets


def _n_tickets(config: TrainConfig, train: TokenFile) -> int:
    """Batches of an epoch of the text."""
    return math.ceil(train.n_sequences(config.seq_len) / config.sequences_per_ticket)


def _schedule(
    config: TrainConfig, strategy: Strategy, lr: float, n_tickets: int, resumed: Resumption | None
) -> Callable[[float], schedules.Rate]:
    """A factory of the schedule; an epoch counts the batches of dropped steps, too."""
    epochs = schedules.Epochs(n_tickets, strategy.workers if strategy.averages else 1)
    if resumed is not None:
        at = resumed.position(n_tickets, config.sequences_per_ticket)
        done = 0 if at is None else at["epoch"] * at["n"] + at["watermark"] + len(at["done"])
        epochs = replace(epochs, version=int(resumed.state["version"]), batches=done)
    return partial(schedules.schedule_of(config).of_run, lr, epochs)


def _in_steps(
    budget: Budget,
    config: TrainConfig,
    train: TokenFile,
    n_tickets: int,
    batches_per_step: float,
    tokens_per_batch: float,
) -> Budget:
    """Convert epochs, and tokens of examples that differ in length, to steps."""
    if config.epochs is not None and budget.is_open:
        steps = round(config.epochs * n_tickets / batches_per_step, 6)  # so that 300 / 1.2 is 250
        return replace(budget, steps=math.ceil(steps))
    if train.rows(config.seq_len) is None or budget.tokens is None:
        return budget
    per_step = tokens_per_batch * batches_per_step
    steps = math.ceil(budget.tokens / per_step)  # by the mean, whatever the order of the rows
    return replace(budget, tokens=None, steps=min(steps, budget.steps or steps))
