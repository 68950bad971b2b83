"""The base of optimizers that a run chooses, and hyperparameters that several have.

An optimizer is a frozen dataclass of its hyperparameters that computes its updates as well. A run
sets the rest, its `run`, by `dataclasses.replace`; `fitted` sets those that are "auto" when model
and workers are known.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple, TypeVar, cast

from mlxhog.config.components import OPTIMIZERS, Component, ComponentRegistry, Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option, options
from mlxhog.config.train_options import DEFAULT_OPTIMIZER
from mlxhog.errors import ConfigError
from mlxhog.optim.rule import Optimizer, OptimizerWrapper, Pairs, UpdateStep, UpdateTarget

LR: Final = 1e-3
BETA1: Final = 0.9
EPS: Final = 1e-8

GROUPS: Final = {"embedding": "embedding_lr", "head": "head_lr", "scalar": "scalar_lr"}
"""Groups of parameters beside the hidden matrices, with the factors of their learning rates."""

Groups = Mapping[str, frozenset[str]]
"""Names of the parameters of each of `GROUPS`, and "table"; empty for what the model lacks."""

_LACKS = {
    "embedding": "the model has no embedding; leave it out",
    "head": "the model's head is its embedding (tied); leave it out: embedding_lr moves both",
    "scalar": "all parameters are embedding, head or hidden matrices; leave it out",
}

Other = TypeVar("Other", bound="OptimizerComponent")


class RunContext(NamedTuple):
    """Values of a run that an optimizer needs beside its hyperparameters."""

    hidden: frozenset[str] = frozenset()  # names of the model's hidden matrices
    threads: int = 1
    seed: int = 0
    shared: bool = False  # whether all workers have one pair of moments


@dataclass(frozen=True, kw_only=True)
class OptimizerComponent(Component, Optimizer, ABC):
    """An optimizer: its hyperparameters, its traits, and its updates (`update`)."""

    registry: ClassVar[ComponentRegistry] = OPTIMIZERS
    title: ClassVar[str] = ""  # its name in texts
    is_adaptive: ClassVar[bool] = False  # its steps do not scale with the gradient
    has_own_bases: ClassVar[bool] = False  # its state has no average over workers
    beside: ClassVar[str] = ""  # the rule of parameters other than hidden matrices
    lr_workers: ClassVar[str] = "none"  # the value of `lr_workers=auto`
    moments = "private"  # default where it is no hyperparameter; annotated, it would be one of all

    run: RunContext = RunContext()  # set by `mlxhog.strategies.build_optimizer`

    def fitted(self, *, hidden: bool, predicted: int = 1) -> OptimizerComponent:
        """Return it with values for its open hyperparameters, or the optimizer that replaces it.

        `hidden` says whether the model has hidden matrices; `predicted` is the number of workers,
        this one included, whose updates `predict=last` extrapolates.
        """
        return self

    def default_lr(self, width: int, vocabulary: int = 0, averaged: int = 1) -> float:
        """Return the default learning rate for updates along the mean of `averaged` gradients."""
        return LR

    def workers_factor(self, rule: str, workers: int) -> float:
        """Return the factor of lr where workers apply updates of their own, by a `lr_workers`."""
        rule = self.lr_workers if rule == "auto" else rule
        return {"sqrt": 1.0 / math.sqrt(workers), "linear": 1.0 / workers}.get(rule, 1.0)

    def shares_moments(self, *, lock_free: bool) -> bool:
        """Whether all workers have one pair of moments; `lock_free`: no worker waits to write."""
        return False

    def orthogonalizes_on_worker(self, *, on_gpu: bool) -> bool:
        """Whether a worker orthogonalizes matrices on its own device, which may be a GPU."""
        return False


def optimizer_of(config: TrainConfig) -> OptimizerComponent:
    """Return the optimizer of a configuration; the default if it is open."""
    return cast(OptimizerComponent, config.optimizer or OPTIMIZERS.read(DEFAULT_OPTIMIZER))


def like(kind: type[Other], other: OptimizerComponent) -> Other:
    """Return an optimizer of a class, with another's run and hyperparameters that both have."""
    both = options(kind).keys() & options(type(other)).keys()
    return kind(run=other.run, **{name: getattr(other, name) for name in both})


@dataclass(frozen=True, kw_only=True)
class Decayed(OptimizerComponent):
    """Weight decay."""

    weight_decay: float = option(
        0.1, "decay of weight matrices, decoupled; with momentum it is part of the gradient", low=0
    )


@dataclass(frozen=True, kw_only=True)
class MomentAverages(Decayed):
    """Exponential moving averages of the gradient and its square (of Lion: a second momentum)."""

    is_adaptive: ClassVar[bool] = True

    beta1: float | None = option(
        None,
        "decay of the first moment; auto is 0.9; for muon 0.75, and 0.95 with parameter "
        "extrapolation for four or more workers",
        low=0, below=1, none="auto",
    )  # fmt: skip
    beta2: float = option(0.95, "decay of the second moment; lion: of its mean", low=0, below=1)
    beta2_half_life: int | None = option(
        None,
        "sets beta2 by text: a gradient has half its weight after this number of tokens; beta2 is "
        "2^(-tokens in one step / half-life)",
        unit="tokens", low=1, none="off",
    )  # fmt: skip

    def constraints(self) -> Constraints:
        return (
            (self.beta2_half_life is not None and self.beta2 != 0.95, "beta2_half_life",
             f"takes the place of beta2, which is {self.beta2}; keep one"),
        )  # fmt: skip

    def fitted(self, *, hidden: bool, predicted: int = 1) -> OptimizerComponent:
        return self if self.beta1 is not None else replace(self, beta1=BETA1)

    @property
    def decay1(self) -> float:
        """Decay of the first moment."""
        return BETA1 if self.beta1 is None else self.beta1

    @property
    def decays(self) -> tuple[float, float, float, float]:
        """Weights of both moving averages, as native kernels take them."""
        return self.decay1, 1.0 - self.decay1, self.beta2, 1.0 - self.beta2


@dataclass(frozen=True, kw_only=True)
class Adaptive(MomentAverages):
    """Updates divided by the root of a second moment."""

    eps: float = option(EPS, "added to the root of the second moment", above=0)
    embedding_lr: float = option(
        1.0, "factor of lr for the embedding; with muon 12 is best for many random rows", above=0
    )
    head_lr: float = option(1.0, "factor of lr for the head", above=0)
    scalar_lr: float = option(
        1.0,
        "factor of lr for gates, biases, norms and all others that are neither embedding, head "
        "nor hidden matrices",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class SharedMoments(Adaptive):
    """Moments "m" and "v", of each worker or shared by all."""

    shares_by_itself: ClassVar[bool] = False  # moments=auto is one pair if workers are lock-free

    moments: str = option(
        "auto",
        "moments of each worker, or one pair for all; auto is shared for muon under hogwild, else "
        "private",
        choices=("auto", "private", "shared"), aliases=("second_moment",),
    )  # fmt: skip

    def shares_moments(self, *, lock_free: bool) -> bool:
        by_itself = self.moments == "auto" and self.shares_by_itself and lock_free
        return by_itself or self.moments == "shared"

    @property
    def state_segments(self) -> tuple[str, ...]:
        return () if self.run.shared else ("m", "v")

    @property
    def shared_segments(self) -> tuple[str, ...]:
        return ("m", "v") if self.run.shared else ()


# -- learning rates by group -----------------------------------------------------------------------


def factors(optimizer: OptimizerComponent, groups: Groups) -> dict[str, float]:
    """Return the factor of each parameter whose factor is not 1.

    Raises:
        ConfigError: the model lacks the group of a factor.
    """
    by_name: dict[str, float] = {}
    for group, name in GROUPS.items():
        factor = getattr(optimizer, name, 1.0)
        if factor != 1.0 and not groups[group]:
            raise ConfigError(f"{name} is {factor:g}, and {_LACKS[group]}")
        by_name |= dict.fromkeys(groups[group] if factor != 1.0 else (), factor)
    return by_name


class GroupedRates(OptimizerWrapper):
    """An optimizer with multiples of lr for some parameters."""

    def __init__(self, rule: Optimizer, factors: Mapping[str, float]) -> None:
        """Wrap an optimizer; parameters without a factor have 1."""
        super().__init__(rule)
        self._factors = factors

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        groups: dict[float, list[int]] = {}
        for k, (slot, _) in enumerate(pairs):
            groups.setdefault(self._factors.get(slot.name, 1.0), []).append(k)
        for factor, members in groups.items():
            part = [pairs[k] for k in members]
            self.rule.update(target, part, replace(step, lr=factor * step.lr))
