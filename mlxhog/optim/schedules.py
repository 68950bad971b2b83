"""Learning-rate schedules: constant, cosine, warmup-stable-decay, 1/k, robust 1/k with back-off.

A schedule maps (lr, progress, update) to a learning rate. `progress` in [0, 1] is the largest used
share of any budget (steps, tokens or time); `update` counts updates of all workers so far.
Step-based schedules use `update` alone, so the run needs no end; they may count epochs instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

from mlxhog.config.components import SCHEDULES, Component, ComponentRegistry, Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option

Rate = Callable[[float, int], float]
"""A schedule of one run: (progress, update) -> learning rate."""

WSD_DECAY: Final = 0.2  # last share of a wsd run, over which the learning rate decays
BETA: Final = 0.37  # of back-off, near the best for its bound


@dataclass(frozen=True)
class Epochs:
    """The epoch of the data at an update, by the number of batches processed so far."""

    n: int  # batches of an epoch
    per_update: float = 1.0  # batches of an update, on average
    version: int = 0  # updates before this call
    batches: int = 0  # before it; then an update may have had another number of them

    def of(self, update: int) -> int:
        """The epoch, from 0, of an update of the run."""
        return int((self.batches + (update - self.version) * self.per_update) // self.n)


@dataclass(frozen=True, kw_only=True)
class Schedule(Component, ABC):
    """The learning rate of a run as a function of its progress, or of its updates."""

    registry: ClassVar[ComponentRegistry] = SCHEDULES
    falls: ClassVar[bool] = False
    """Whether it depends on the number of updates, so that a run needs no end."""

    @abstractmethod
    def at(self, lr: float, progress: float, update: int) -> float:
        """Return the learning rate of an update; the peak is `lr`.

        `update` counts the updates before it, by all workers; or epochs, if the schedule does.
        """

    def of_run(self, lr: float, epochs: Epochs, step_share: float) -> Rate:
        """Return the schedule of a run; `step_share` is `Budget.step_share`."""
        return lambda progress, update: self.at(lr, progress, update)


def schedule_of(config: TrainConfig) -> Schedule:
    """Return the schedule of a configuration."""
    return cast(Schedule, config.schedule)


def _floor() -> Any:  # a dataclass field
    return option(0.1, "final learning rate as a fraction of lr", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class WarmedUp(Schedule):
    """A schedule with linear warmup over a share of the run."""

    warmup: float = option(0.03, "fraction of the run used for linear warmup", low=0, below=1)

    def of_run(self, lr: float, epochs: Epochs, step_share: float) -> Rate:

        def at(progress: float, update: int) -> float:
            warmed = min(1.0, (progress + step_share) / self.warmup) if self.warmup else 1.0
            return warmed * self.at(lr, progress, update)

        return at


@dataclass(frozen=True, kw_only=True)
class Constant(WarmedUp):
    """`lr`, after the warmup."""

    name: ClassVar[str] = "constant"
    about: ClassVar[str] = "one learning rate after the warmup"

    def at(self, lr: float, progress: float, update: int) -> float:
        return lr


@dataclass(frozen=True, kw_only=True)
class Cosine(WarmedUp):
    """Half a cosine from `lr` after the warmup down to `min_lr_ratio * lr` at progress 1."""

    name: ClassVar[str] = "cosine"
    about: ClassVar[str] = "warmup, then cosine decay to min_lr_ratio"

    min_lr_ratio: float = _floor()

    def at(self, lr: float, progress: float, update: int) -> float:
        warmup, floor = self.warmup, self.min_lr_ratio
        x = min(1.0, max(0.0, (progress - warmup) / (1.0 - warmup)))
        return lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * x)))


@dataclass(frozen=True, kw_only=True)
class WSD(WarmedUp):
    """`lr` after the warmup, then a line down to `min_lr_ratio * lr` over the last fifth."""

    name: ClassVar[str] = "wsd"
    about: ClassVar[str] = "warmup, stable, then linear decay over the last fifth"

    min_lr_ratio: float = _floor()

    def at(self, lr: float, progress: float, update: int) -> float:
        x = min(1.0, max(0.0, (progress - (1.0 - WSD_DECAY)) / WSD_DECAY))
        return lr * (1.0 - (1.0 - self.min_lr_ratio) * x)


@dataclass(frozen=True, kw_only=True)
class Falling(Schedule):
    """A schedule that depends on the number of updates, or of epochs."""

    falls: ClassVar[bool] = True

    steps: int = option(
        1000,
        "backoff: updates with the peak learning rate; inverse: updates until it is halved",
        unit="steps", low=1, flat="backoff_steps",
    )  # fmt: skip
    epochs: int | None = option(
        None,
        "epochs instead of steps; the learning rate changes between epochs only",
        low=1, none="off", flat="backoff_epochs",
    )  # fmt: skip

    def constraints(self) -> Constraints:
        return (
            (self.epochs is not None and self.steps != 1000, "backoff_epochs",
             f"takes the place of backoff_steps, which is {self.steps}; keep one"),
        )  # fmt: skip

    def of_run(self, lr: float, epochs: Epochs, step_share: float) -> Rate:
        if self.epochs is None:
            return super().of_run(lr, epochs, step_share)
        return lambda progress, update: self.at(lr, progress, epochs.of(update))

    @property
    def _first(self) -> int:
        return self.steps if self.epochs is None else self.epochs


@dataclass(frozen=True, kw_only=True)
class Inverse(Falling):
    """`lr / (1 + update / steps)`: half of `lr` after `steps` updates, of order 1/k in the end."""

    name: ClassVar[str] = "inverse"
    about: ClassVar[str] = "1/k, half after the first steps"

    def at(self, lr: float, progress: float, update: int) -> float:
        return lr / (1.0 + update / self._first)


@dataclass(frozen=True, kw_only=True)
class Backoff(Falling):
    """`lr` for `steps` updates, then `beta * lr` for `steps / beta`, and so on.

    After k updates the learning rate is of order 1/k: on a problem of strong convexity c the error
    falls as 1/k if `steps` is at least ln(2/beta) / (lr c). The constant of that bound,
    ln(2/beta) / (1 - beta), is smallest at beta = .37336.
    Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, section 5.
    """

    name: ClassVar[str] = "backoff"
    about: ClassVar[str] = "the 1/k rule of Hogwild, in stages"

    beta: float = option(
        BETA, "factor of the learning rate after each stage", above=0, below=1, flat="backoff_beta"
    )

    def at(self, lr: float, progress: float, update: int) -> float:
        stage = backoff_stage(update, steps=self._first, beta=self.beta)
        return float(lr * self.beta**stage)


for _schedule in (Cosine, Constant, WSD, Backoff, Inverse):
    SCHEDULES.register(_schedule)
FALLING: Final = (Backoff.name, Inverse.name)  # the step-based schedules


@dataclass(frozen=True)
class CosineByEpoch:
    """Half a cosine down to `floor`, a learning rate, that changes once per epoch, as in mad-lab.

    Source: torch.optim.lr_scheduler.CosineAnnealingLR with an epoch as its step.
    """

    floor: float  # learning rate at the end; lr if that is smaller
    steps: int  # of the whole run, which end at progress 1
    per_epoch: int  # steps of an epoch

    def of_run(self, lr: float, epochs: Epochs, step_share: float) -> Rate:
        low = min(self.floor, lr)

        def at(progress: float, update: int) -> float:
            begun = round(progress * self.steps) // self.per_epoch * self.per_epoch
            return low + (lr - low) * 0.5 * (1.0 + math.cos(math.pi * begun / self.steps))

        return at


def backoff_stage(update: int, *, steps: float, beta: float) -> int:
    """Stage that `update` (from 0) falls in; stage e begins at `backoff_start(e)`."""
    guess = math.log1p(update * (1.0 / beta - 1.0) / steps) / math.log(1.0 / beta)
    stage = int(guess)
    if update >= backoff_start(stage + 1, steps=steps, beta=beta):  # the logarithm was rounded down
        return stage + 1
    return stage - (update < backoff_start(stage, steps=steps, beta=beta))


def backoff_start(stage: int, *, steps: float, beta: float) -> float:
    """Updates before a stage: `steps * (1 + 1/beta + ... + 1/beta^(stage-1))`."""
    return float(steps * (beta**-stage - 1.0) / (1.0 / beta - 1.0))
