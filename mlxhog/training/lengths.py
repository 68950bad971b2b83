"""The length of a run in steps and in passes over the text, and a warning of too many passes.

Up to about four passes, repeated text is nearly as useful as new text; after that its use declines
(Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264).
"""

from __future__ import annotations

import math
from dataclasses import replace

from mlxhog.base.quantities import format_count
from mlxhog.config.budget import Budget
from mlxhog.data.tokens import TokenFile


def in_steps(
    budget: Budget,
    train: TokenFile,
    *,
    epochs: int | None,
    seq_len: int,
    batch_size: int,
    n_tickets: int,
    batches_per_step: float,
) -> Budget:
    """Convert passes, and tokens of rows that differ in length, to steps.

    Args:
        budget: of this call; empty if `epochs` sets it.
        train: the training text.
        epochs: passes over the text.
        seq_len: of the run.
        batch_size: sequences of a batch.
        n_tickets: batches of a pass.
        batches_per_step: batches that a step takes on average over the budget.
    """
    if epochs is not None and budget == Budget():
        steps = round(epochs * n_tickets / batches_per_step, 6)  # so that 300 / 1.2 is 250
        return Budget(steps=math.ceil(steps))
    rows = train.rows(seq_len)
    if rows is None or budget.tokens is None:
        return budget
    # So that the number of steps does not depend on the order of the rows.
    per_step = float(rows.length.mean()) * batch_size * batches_per_step
    steps = math.ceil(budget.tokens / per_step)
    return replace(budget, tokens=None, steps=min(steps, budget.steps or steps))


def notes(train: TokenFile, val: TokenFile, seq_len: int) -> list[str]:
    """A note on examples that are longer than a sequence."""
    tables = [rows for rows in (train.rows(seq_len), val.rows(seq_len)) if rows is not None]
    cut, longest = sum(rows.cut for rows in tables), max((r.longest for r in tables), default=0)
    if not cut:
        return []
    return [
        f"{cut} examples are longer than seq_len {seq_len}, so the beginning of their prompts is "
        f"cut off; --seq-len {longest} reads them whole"
    ]


MANY_PASSES = 4.0


def passes(
    budget: Budget, *, epoch_tokens: int, tokens_per_step: float, tokens_per_s: float | None = None
) -> float | None:
    """Return how many times a budget reads the text; None if that depends on an unknown speed.

    Args:
        budget: of a run or a part of it.
        epoch_tokens: in one pass.
        tokens_per_step: of the run, on average.
        tokens_per_s: of the run, where it is known.
    """
    tokens: list[float] = []
    if budget.steps is not None:
        tokens.append(budget.steps * tokens_per_step)
    if budget.tokens is not None:
        tokens.append(budget.tokens)
    if budget.seconds is not None and tokens_per_s is not None:
        tokens.append(budget.seconds * tokens_per_s)
    return min(tokens) / epoch_tokens if tokens else None


def repetition(
    budget: Budget, train: TokenFile, *, seq_len: int, tokens_per_step: float
) -> list[str]:
    """Warn of a budget that reads the text too often, if that is known before training."""
    epoch_tokens = train.n_sequences(seq_len) * seq_len
    n_passes = passes(budget, epoch_tokens=epoch_tokens, tokens_per_step=tokens_per_step)
    message = warning(n_passes, epoch_tokens)
    return [] if message is None else [message]


def warning(n_passes: float | None, epoch_tokens: int) -> str | None:
    """Warn of a text that is read more than `MANY_PASSES` times; None if it is not."""
    if n_passes is None or n_passes <= MANY_PASSES:
        return None
    return (
        f"the text of {format_count(epoch_tokens)} tokens is read {n_passes:.3g} times in this "
        f"budget; beyond {MANY_PASSES:g} a model mostly memorises it: use more text, a "
        "smaller budget, or a smaller model"
    )
