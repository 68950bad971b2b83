"""Optimizers as a run chooses them: the base, and numbers that several optimizers have.

An optimizer is one class: a frozen dataclass of its numbers that takes its steps as well. A run
gives it the rest, its `use`, by `dataclasses.replace`; `fitted` gives a number that is "auto" its
value when model and workers are known.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple, TypeVar, cast

from mlxhog.config.components import OPTIMIZERS, Component, ComponentRegistry, Constraints
from mlxhog.config.config import DEFAULT_OPTIMIZER, TrainConfig
from mlxhog.config.options import option, options
from mlxhog.optim.rule import Optimizer

LR: Final = 1e-3
BETA1: Final = 0.9
EPS: Final = 1e-8

GROUPS: Final = {"embedding": "embedding_lr", "head": "head_lr", "scalar": "scalar_lr"}
"""Groups of parameters beside the hidden matrices, with the factors of their learning rates."""

Other = TypeVar("Other", bound="OptimizerChoice")


class Use(NamedTuple):
    """Values of a run that an optimizer needs beside its numbers."""

    hidden: frozenset[str] = frozenset()  # names of the model's hidden matrices
    threads: int = 1  # number of threads that the optimizer may use
    seed: int = 0  # of the run
    shared: bool = False  # whether all workers have one pair of moments


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice(Component, Optimizer, ABC):
    """An optimizer: its numbers, its facts, and the steps that it takes (`update`)."""

    kind: ClassVar[ComponentRegistry] = OPTIMIZERS
    title: ClassVar[str] = ""  # its name as texts spell it
    is_adaptive: ClassVar[bool] = False  # its steps do not scale with the gradient
    has_own_bases: ClassVar[bool] = False  # its state has no average over workers
    beside: ClassVar[str] = ""  # the rule of parameters other than hidden matrices
    lr_workers: ClassVar[str] = "none"  # the value of `lr_workers=auto`
    moments = "private"  # a number of some optimizers; annotated, it would be one of all

    use: Use = Use()  # values of the run; set by `mlxhog.strategies.build_optimizer`

    def fitted(self, *, hidden: bool, ahead: int = 1) -> OptimizerChoice:
        """Return it with values for its open numbers, or the optimizer that replaces it.

        `hidden` says whether the model has hidden matrices; `predict=last` extrapolates the
        gradients of `ahead` workers, itself included.
        """
        return self

    def default_lr(self, width: int, vocabulary: int = 0, averaged: int = 1) -> float:
        """Return the default learning rate of steps that average `averaged` workers' gradients."""
        return LR

    def workers_factor(self, rule: str, workers: int) -> float:
        """Return the factor of lr for workers that add their own steps, by a `lr_workers`."""
        rule = self.lr_workers if rule == "auto" else rule
        return {"sqrt": 1.0 / math.sqrt(workers), "linear": 1.0 / workers}.get(rule, 1.0)

    def shares_moments(self, *, lock_free: bool) -> bool:
        """Whether all workers have one pair of moments; `lock_free`: none waits to add a step."""
        return False

    def orthogonalizes_on_worker(self, *, on_gpu: bool) -> bool:
        """Whether a worker orthogonalises matrices on its own device, which may be a GPU."""
        return False


def optimizer_of(config: TrainConfig) -> OptimizerChoice:
    """Return the optimizer of a configuration; the default if it is open."""
    return cast(OptimizerChoice, config.optimizer or OPTIMIZERS.read(DEFAULT_OPTIMIZER))


def like(kind: type[Other], other: OptimizerChoice) -> Other:
    """Return an optimizer of a kind, with the use and the numbers that it shares with another."""
    both = options(kind).keys() & options(type(other)).keys()
    return kind(use=other.use, **{name: getattr(other, name) for name in both})


@dataclass(frozen=True, kw_only=True)
class Decayed(OptimizerChoice):
    """Weight decay."""

    weight_decay: float = option(
        0.1, "decay of weight matrices, decoupled; with momentum it is part of the gradient", low=0
    )


@dataclass(frozen=True, kw_only=True)
class Averaging(Decayed):
    """Running means of the gradient, and of its square or, Lion, of their own."""

    is_adaptive: ClassVar[bool] = True

    beta1: float | None = option(
        None,
        "decay of the first moment; auto is 0.9; for muon 0.75, and 0.95 if it looks ahead of "
        "three or more workers",
        low=0, below=1, none="auto",
    )  # fmt: skip
    beta2: float = option(
        0.95, "decay of the second moment; lion: of its mean", low=0, below=1
    )  # fmt: skip
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

    def fitted(self, *, hidden: bool, ahead: int = 1) -> OptimizerChoice:
        return self if self.beta1 is not None else replace(self, beta1=BETA1)

    @property
    def decay1(self) -> float:
        """Decay of the first moment; the default if it is open."""
        return BETA1 if self.beta1 is None else self.beta1

    @property
    def decays(self) -> tuple[float, float, float, float]:
        """Rates of both exponential means, as native kernels take them."""
        return self.decay1, 1.0 - self.decay1, self.beta2, 1.0 - self.beta2


@dataclass(frozen=True, kw_only=True)
class Adaptive(Averaging):
    """Steps divided by the root of a second moment."""

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
class Sharing(Adaptive):
    """Moments "m" and "v" of each worker, or one pair for all."""

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
        return () if self.use.shared else ("m", "v")

    @property
    def shared_segments(self) -> tuple[str, ...]:
        return ("m", "v") if self.use.shared else ()
