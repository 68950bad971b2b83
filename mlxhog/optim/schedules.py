"""Step sizes over a run: constant, cosine, warmup-stable-decay, 1/k, and the robust 1/k back-off.

A schedule maps (progress, update) to a step size. `progress` in [0, 1] is the largest used share of
any budget (steps, tokens or time), so cosine and wsd need not know which budget ends the run;
`update` counts updates applied so far by all workers. The last two depend on `update` alone, so
they need not know when the run ends; they may count epochs instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from mlxhog.config.config import TrainConfig
from mlxhog.config.contradictions import FALLING_SCHEDULES
from mlxhog.errors import ConfigError

Schedule = Callable[[float, int], float]

MUON_LR: Final = 3e-3
MUON_WIDTH: Final = 128
"""Of the model for which a search found that step size; other widths have their own."""
WSD_DECAY: Final = 0.2  # last share of a wsd run, over which the step size falls


class FallingConfig(Protocol):
    """The options of `backoff` and `inverse`; those of MAD candidates have them, too."""

    @property
    def schedule(self) -> str:
        """Name of the schedule."""

    @property
    def backoff_steps(self) -> int:
        """Updates with the first step size of backoff, or until that of inverse is half."""

    @property
    def backoff_epochs(self) -> int | None:
        """Epochs in place of `backoff_steps`; the step size changes between epochs only."""

    @property
    def backoff_beta(self) -> float:
        """Factor of the step size after each stage of backoff."""


def default_lr(optimizer: str, width: int, averaged: int = 1) -> float:
    """The largest step size that an optimizer takes by default.

    Args:
        optimizer: its name.
        width: of the model.
        averaged: workers whose gradients one step averages.

    Muon's step of a matrix of width d has a spectral norm of about .2 sqrt(d) lr, and what it does
    to activations should not depend on d. Source: Yang, Simon and Bernstein 2023, arXiv:2310.17813.
    """
    if optimizer != "muon":
        return 1e-3
    return MUON_LR * math.sqrt(averaged * MUON_WIDTH / width)


def workers_factor(rule: str, optimizer: str, workers: int) -> float:
    """Factor of lr where several workers add steps of their own.

    Lion moves every element by lr whatever the gradient, so P workers move it by up to P * lr while
    one computes. The other rules' steps shrink where gradients of different workers disagree.

    Args:
        rule: none, sqrt, linear, or auto: sqrt for Lion, none for the others.
        optimizer: its name.
        workers: that add steps of their own.
    """
    if rule == "sqrt" or (rule == "auto" and optimizer == "lion"):
        return 1.0 / math.sqrt(workers)
    return 1.0 / workers if rule == "linear" else 1.0


@dataclass(frozen=True)
class Epochs:
    """Which epoch of the text an update is in, by the batches that have been handed out.

    Attributes:
        n: batches of an epoch.
        per_update: batches that an update takes, on average.
        version: updates before this call,
        batches: and batches before it, which may have had other updates.
    """

    n: int
    per_update: float = 1.0
    version: int = 0
    batches: int = 0

    def of(self, update: int) -> int:
        """The epoch, from 0, of an update of the run."""
        return int((self.batches + (update - self.version) * self.per_update) // self.n)


def build(config: TrainConfig, *, lr: float, epochs: Epochs) -> Schedule:
    """The schedule that `config.schedule` names.

    Args:
        config: its options.
        lr: the largest step size.
        epochs: of the run.

    Raises:
        ConfigError: unknown name.
    """
    warmup, floor = config.warmup, config.lr_floor
    if config.schedule == "constant":
        return constant(lr, warmup=warmup)
    if config.schedule == "cosine":
        return cosine(lr, warmup=warmup, floor=floor)
    if config.schedule == "wsd":
        return wsd(lr, warmup=warmup, floor=floor)
    if config.schedule in FALLING_SCHEDULES:
        return falling(config, lr=lr, epochs=epochs)
    raise ConfigError(
        f"no schedule {config.schedule!r}; choose from backoff, constant, cosine, inverse, wsd"
    )


def falling(config: FallingConfig, *, lr: float, epochs: Epochs) -> Schedule:
    """`backoff` or `inverse`, whichever `config.schedule` names; see `FallingConfig`."""
    by_epoch = config.backoff_epochs
    steps = config.backoff_steps if by_epoch is None else by_epoch
    if config.schedule == "inverse":
        schedule = inverse(lr, steps=steps)
    else:
        schedule = backoff(lr, steps=steps, beta=config.backoff_beta)
    if by_epoch is None:
        return schedule
    return lambda progress, update: schedule(progress, epochs.of(update))


def constant(lr: float, *, warmup: float = 0.0) -> Schedule:
    """`lr`, after a linear warm-up over a share of the run."""
    return lambda progress, update: lr * _warmed(progress, warmup)


def cosine(lr: float, *, warmup: float, floor: float) -> Schedule:
    """Linear warm-up to `lr`, then half a cosine down to `floor * lr` at progress 1."""

    def at(progress: float, update: int) -> float:
        if progress < warmup:
            return lr * _warmed(progress, warmup)
        x = min(1.0, (progress - warmup) / (1.0 - warmup)) if warmup < 1 else 1.0
        return lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * x)))

    return at


def cosine_by_epoch(lr: float, *, floor: float, steps: int, per_epoch: int) -> Schedule:
    """Half a cosine from `lr` down to `floor`, a step size, that moves once per epoch.

    Args:
        lr: step size of the first epoch.
        floor: what the cosine reaches at the end; `lr` where that is smaller.
        steps: of the whole run, which progress 1 stands for.
        per_epoch: steps of an epoch.

    Source: torch.optim.lr_scheduler.CosineAnnealingLR with an epoch as its step.
    """
    low = min(floor, lr)

    def at(progress: float, update: int) -> float:
        begun = round(progress * steps) // per_epoch * per_epoch
        return low + (lr - low) * 0.5 * (1.0 + math.cos(math.pi * begun / steps))

    return at


def wsd(lr: float, *, warmup: float, floor: float, decay: float = WSD_DECAY) -> Schedule:
    """Linear warm-up, then `lr`, then a line down to `floor * lr` over the last `decay` of it."""

    def at(progress: float, update: int) -> float:
        x = min(1.0, max(0.0, (progress - (1.0 - decay)) / decay))
        return lr * _warmed(progress, warmup) * (1.0 - (1.0 - floor) * x)

    return at


def inverse(lr: float, *, steps: float) -> Schedule:
    """`lr / (1 + update / steps)`: half of `lr` after `steps` updates, of order 1/k in the end."""
    return lambda progress, update: lr / (1.0 + update / steps)


def backoff(lr: float, *, steps: float, beta: float) -> Schedule:
    """`lr` for `steps` updates, then `beta * lr` for `steps / beta`, and so on.

    After k updates the step size is of order 1/k: on a problem of strong convexity c the error
    falls as 1/k where `steps` is at least ln(2/beta) / (lr c). The constant of that bound,
    ln(2/beta) / (1 - beta), is smallest at beta = .37336.
    Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, section 5.
    """

    def at(progress: float, update: int) -> float:
        return float(lr * beta ** backoff_stage(update, steps=steps, beta=beta))

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


def _warmed(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup > 0 else 1.0
