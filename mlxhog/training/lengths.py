"""How long a run is in steps, where passes over the text or tokens of examples say it."""

from __future__ import annotations

import math
from dataclasses import replace

from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.data.tokens import TokenFile


def in_steps(
    budget: Budget,
    config: TrainConfig,
    train: TokenFile,
    *,
    n_tickets: int,
    batches_per_step: int,
) -> Budget:
    """Return a budget without passes, and without tokens of rows that differ in length.

    Args:
        budget: of this call; with nothing in it where the configuration says passes.
        config: of the run.
        train: the training text.
        n_tickets: batches of a pass.
        batches_per_step: batches that one step takes.
    """
    if config.epochs is not None and budget == Budget():
        return Budget(steps=math.ceil(config.epochs * n_tickets / batches_per_step))
    rows = train.rows(config.seq_len)
    if rows is None or budget.tokens is None:
        return budget
    # So that the same budget is the same number of steps, whatever the order of the rows.
    per_step = float(rows.length.mean()) * config.sequences_per_ticket * batches_per_step
    steps = math.ceil(budget.tokens / per_step)
    return replace(budget, tokens=None, steps=min(steps, budget.steps or steps))


def notes(train: TokenFile, val: TokenFile, seq_len: int) -> list[str]:
    """What the user should know of examples that are longer than a sequence."""
    tables = [rows for rows in (train.rows(seq_len), val.rows(seq_len)) if rows is not None]
    cut, longest = sum(rows.cut for rows in tables), max((r.longest for r in tables), default=0)
    if not cut:
        return []
    return [
        f"{cut} examples are longer than seq_len {seq_len}, and their prompts are read without the "
        f"beginning; --seq-len {longest} reads them whole"
    ]
