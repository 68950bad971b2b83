"""What a strategy knows of its run beside its own numbers; none holds the run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from mlxhog import optim
from mlxhog.config import optimizers, schedules
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizers import OptimizerChoice
from mlxhog.config.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts of one run, the same in each of its processes.

    Attributes:
        sequences: of a batch, which is a ticket.
        seq_len: tokens of a sequence.
        prediction: where gradients are taken: none, own or last (`look_ahead.py`).
        determinism: as the option has it.
        seed: of the run.
        lr: largest step size; None where the model has not said it yet.
        clip: norm from which gradients are scaled down; 0 is never.
        optimizer: takes the steps.
        schedule: of the step size.
        state_segments: kinds of optimizer state that each worker has of its own.
        fresh_optimizer: whether a resumed run begins without its optimizer state.
    """

    sequences: int
    seq_len: int
    prediction: str
    determinism: str
    seed: int
    lr: float | None
    clip: float
    optimizer: OptimizerChoice
    schedule: Schedule
    state_segments: tuple[str, ...]
    fresh_optimizer: bool

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
            clip=config.clip,
            optimizer=optimizers.of(config),
            schedule=schedules.of(config),
            state_segments=optim.build(config).state_segments,
            fresh_optimizer=config.reset_optimizer,
        )
