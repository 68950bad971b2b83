"""Facts of a run that a strategy needs beside its own numbers; it holds no configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from mlxhog.config import optimizers, schedules
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizer import OptimizerChoice
from mlxhog.config.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts of one run, the same in each of its processes.

    Attributes:
        sequences: of a batch, which is a ticket.
        seq_len: tokens of a sequence.
        prediction: where gradients are taken: none, own or last (`look_ahead.py`).
        determinism: value of the option.
        seed: of the run.
        lr: largest step size; None until the model sets it.
        ngram_lr: largest step size of tables of n-grams.
        clip: norm above which gradients are scaled down; 0 is never.
        optimizer: of the run.
        schedule: of the step size.
        fresh_optimizer: whether a resumed run begins without its optimizer state.
        overlap: whether a worker reads for its next gradient before it adds the last one's step.
    """

    sequences: int
    seq_len: int
    prediction: str
    determinism: str
    seed: int
    lr: float | None
    ngram_lr: float
    clip: float
    optimizer: OptimizerChoice
    schedule: Schedule
    fresh_optimizer: bool
    overlap: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Take them from a configuration."""
        return cls(
            sequences=config.sequences_per_ticket,
            seq_len=config.seq_len,
            prediction=config.prediction,
            determinism=config.determinism,
            seed=config.seed,
            lr=config.lr,
            ngram_lr=config.ngram_lr,
            clip=config.clip,
            optimizer=optimizers.of(config),
            schedule=schedules.of(config),
            fresh_optimizer=config.reset_optimizer,
            overlap=config.overlap,
        )
