"""What of a plan depends on its strategy: options, optimizer, batches, budget and step sizes.

A run that may change its strategy has these for each of two; `plan.py` has the rest.

Up to about four passes, repeated text is nearly as useful as new text; after that its use declines
(Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264).
"""

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
from mlxhog.config import schedules
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.data import prepare
from mlxhog.data.batches import Batches
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.strategies import Serial, Strategy
from mlxhog.strategies.local import Local
from mlxhog.training import choose_strategy
from mlxhog.training.origin import Resumption

if TYPE_CHECKING:
    from mlxhog.data.clients import Division

MANY_PASSES = 4.0


def choices(
    config: TrainConfig, workers: Sequence[WorkerSpec], resumption: Resumption | None
) -> tuple[Strategy, ...]:
    """The strategies that the run may have, the first one first."""
    if len(workers) == 1:
        return (config.strategy or Serial(),)
    if config.strategy is None:
        both = choose_strategy.by_likelihood(workers)
    elif (regimes := config.strategy.regimes()) is not None:
        both = regimes
    else:
        return (config.strategy,)
    is_second = resumption is not None and resumption.state["regime"] == both[1].name
    return both[::-1] if is_second else both


def fields_of(
    asked: TrainConfig,
    config: TrainConfig,
    choice: Strategy,
    model: ModelConfig,
    workers: Sequence[WorkerSpec],
    resumption: Resumption | None,
    data: prepare.Prepared,
    train: TokenFile,
    is_open: bool,
) -> dict[str, Any]:
    """The fields of a plan that depend on the strategy; `is_open` where the run may change it."""
    notes: list[str] = []
    n_workers, hidden = len(workers), families.hidden_matrices(model)
    groups = families.rate_groups(model)

    # Open options.
    chosen = config.having(strategy=choice)
    began = {} if resumption is None else resumption.began_with()
    trained = config.init_from is not None or bool(began)  # rows that need no long steps
    vocabulary = 0 if trained else model.vocab_size
    resolved = optim.for_model(
        chosen, model.hidden_size, hidden, n_workers, vocabulary=vocabulary, groups=groups
    )
    if (folder := resolved.follow) is not None:
        if not expanded(folder).is_dir():
            raise ConfigError(
                f"follow: there is no folder {folder}; create it (mkdir), or name another"
            )
        text = f"follows {folder}: new text files there are trained once"
        if not (resolved.has_budget or resolved.schedule.falls):  # the run has no end
            constant = format_number(resolved.top_lr)
            text += f", at a constant lr of {constant}, until mlxhog stop or Ctrl-C"
            resolved = resolved.having(schedule=schedules.Constant(warmup=0.0))
        notes.append(text)
    optimizer_choice, steps = optim.chosen(resolved), resolved.strategy or choice
    factor = optimizer_choice.workers_factor(steps.lr_workers, steps.steppers(n_workers))
    lr, before = resolved.top_lr * factor, {} if resumption is None else resumption.automatic()
    if factor != 1.0:
        notes.append(
            f"lr {format_number(lr)}: {format_number(factor)} of {format_number(resolved.top_lr)}, "
            "since each worker adds steps of its own (lr_workers)"
        )
    given, numbers = optim.open_numbers(chosen), optim.open_numbers(resolved)
    notes += [
        f"{name} {numbers[name]:.4g}: the default of {optimizer_choice.name} in "
        f"{resolved.strategy_name} with {n_workers} worker{'s' * (n_workers > 1)}; the run had "
        f"{was:.4g}"
        for name, was in before.items()
        if given.get(name) is None and numbers.get(name) not in (None, was)
    ]
    if (named := optim.chosen(chosen)).beside and not hidden:
        notes.append(
            f"optimizer {named.name}: this {model.title} has no hidden matrix "
            f"(both sides at least {model.hidden_size / 2:g}, half its width), so "
            f"{named.beside} moves every parameter"
        )
    if resolved.strategy != chosen.strategy:
        notes.append(
            f"predict last: {optimizer_choice.name} has no moments of all workers, so it is "
            f"{resolved.prediction} (--moments shared keeps it)"
        )
    if is_open and config.strategy is None:
        regime = None if resumption is None else resumption.state["regime"]
        notes.append(choose_strategy.first_note(choice.name, regime))

    # The strategy and its batches.
    strategy = strategies.build(resolved, n_workers)
    strategy.check(model)
    stored = None if resumption is None else resumption.run.directory
    division = strategy.division(data, train, stored) if isinstance(strategy, Local) else None
    strategy, batches, n_tickets = _batches(strategy, division, data, train)
    if division is not None:
        notes.append(str(division))
    per_step = strategy.batches_per_step()
    mean_per_step = float(per_step)
    regimes = None if config.strategy is None else config.strategy.regimes()
    if config.strategy and regimes and config.steps is not None:
        if strategy.name == regimes[0].name:
            mean_per_step = 1.0 + config.strategy.async_after * (strategy.workers - 1)

    # The budget and the step sizes.
    budget = Budget(steps=config.steps, tokens=config.tokens, seconds=config.time)
    if resumption is not None:
        budget = resumption.budget(budget, per_step)
    epoch_tokens = train.n_sequences(resolved.seq_len) * resolved.seq_len
    mean_tokens = mean_per_step * resolved.sequences_per_ticket * resolved.seq_len
    if resolved.follow is None:
        read = passes(budget, epoch_tokens=epoch_tokens, tokens_per_step=mean_tokens)
        if read is not None and read > MANY_PASSES:
            notes.append(repetition(epoch_tokens, f"is read {read:.3g} times in this budget"))
    decided = not is_open and config.strategy is not None
    stored_choice = resolved.strategy if decided else config.strategy
    return {
        "config": resolved,
        "stored": _stored(asked, resolved, resumption, stored_choice),
        "automatic": tuple(
            name
            for name, value in numbers.items()
            if value is not None and given.get(name) in (None, before.get(name))
        ),
        "notes": notes,
        "strategy": strategy,
        "optimizer": optim.build(
            resolved, hidden, groups=groups, tokens_per_step=strategy.tokens_per_step
        ),
        "batches": batches,
        "n_tickets": n_tickets,  # of the layout
        "division": division,
        "epoch_tokens": epoch_tokens,
        "mean_tokens_per_step": mean_tokens,
        "budget": _in_steps(budget, resolved, train, n_tickets, per_step),
        "schedule": _schedule(strategy, lr, n_tickets, resumption),
    }


def _stored(
    asked: TrainConfig,
    resolved: TrainConfig,
    resumption: Resumption | None,
    strategy: Strategy | None,
) -> TrainConfig:
    """The options for the run's folder."""
    kept = {} if resumption is None else resumption.stored
    names = [name for name in ("model", "tokenizer") if getattr(asked, name) == "auto"]
    if resumption is None and asked.init_from is None:
        names = []  # they do not come from a checkpoint
    changes: dict[str, Any] = {name: kept.get(name, "auto") for name in names}
    if strategy != resolved.strategy:
        changes["strategy"] = strategy
    if resumption is not None and (began := resumption.began_with()):
        changes |= {**began, "resume": None, "reset_optimizer": False}
    return replace(resolved, **changes) if changes else resolved


def _batches(
    strategy: Strategy, division: Division | None, data: prepare.Prepared, train: TokenFile
) -> tuple[Strategy, Callable[[], Batches], int]:
    """The batches of the text, or of each client's part of it."""
    config = strategy.config
    size = config.sequences_per_ticket
    rows: dict[str, Any] = {
        "seq_len": config.seq_len,
        "batch_size": size,
        "seed": config.seed,
        "frozen": config.context == "frozen",
    }
    if division is not None and isinstance(strategy, Local):
        from mlxhog.data.clients import ClientBatches

        divided = partial(ClientBatches.open, data.train, documents=division.documents, **rows)
        tickets = divided().tickets
        return replace(strategy, client_tickets=tickets), divided, sum(tickets)
    n_tickets = math.ceil(train.n_sequences(config.seq_len) / size)
    if config.follow is not None:
        from mlxhog.data import stream

        n_tickets = stream.TICKETS
    return strategy, partial(Batches.open, data.train, **rows), n_tickets


def _schedule(
    strategy: Strategy, lr: float, n_tickets: int, resumption: Resumption | None
) -> Callable[[float], schedules.Rate]:
    """Return a factory of the schedule; an epoch counts the batches that steps drop, too."""
    epochs = schedules.Epochs(n_tickets, strategy.workers if strategy.averages else 1)
    if resumption is not None:
        at, done = resumption.position(), 0
        if at is not None:
            done = at["epoch"] * at["n"] + at["watermark"] + len(at["done"])
        version = int(resumption.state["version"])
        epochs = replace(epochs, version=version, batches=done)
    return partial(strategy.config.schedule.of_run, lr, epochs)


def _in_steps(
    budget: Budget, config: TrainConfig, train: TokenFile, n_tickets: int, batches_per_step: float
) -> Budget:
    """Convert passes, and tokens of rows that differ in length, to steps."""
    if config.epochs is not None and budget.is_open:
        steps = round(config.epochs * n_tickets / batches_per_step, 6)  # so that 300 / 1.2 is 250
        return replace(budget, steps=math.ceil(steps))
    rows = train.rows(config.seq_len)
    if rows is None or budget.tokens is None:
        return budget
    # So that the number of steps does not depend on the order of the rows.
    per_step = float(rows.length.mean()) * config.sequences_per_ticket * batches_per_step
    steps = math.ceil(budget.tokens / per_step)
    return replace(budget, tokens=None, steps=min(steps, budget.steps or steps))


def passes(
    budget: Budget, *, epoch_tokens: int, tokens_per_step: float, tokens_per_s: float | None = None
) -> float | None:
    """Return how many times a budget reads the text; None if that depends on an unknown speed."""
    tokens: list[float] = []
    if budget.steps is not None:
        tokens.append(budget.steps * tokens_per_step)
    if budget.tokens is not None:
        tokens.append(budget.tokens)
    if budget.seconds is not None and tokens_per_s is not None:
        tokens.append(budget.seconds * tokens_per_s)
    return min(tokens) / epoch_tokens if tokens else None


def repetition(epoch_tokens: int, read: str) -> str:
    """Warn of a text that is read more than `MANY_PASSES` times; `read` says how often."""
    return (
        f"the text of {format_count(epoch_tokens)} tokens {read}; beyond {MANY_PASSES:g} a model "
        "mostly memorises it: use more text, a smaller budget, or a smaller model"
    )
