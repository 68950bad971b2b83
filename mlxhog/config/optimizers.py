"""Optimizers as a run chooses them: numbers and facts of each.

`mlxhog.optim` takes their steps. Nothing here imports NumPy, so that help and errors about options
are fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from mlxhog.config.choices import OPTIMIZERS
from mlxhog.config.optimizer import (
    BETA1,
    Adaptive,
    Averaging,
    Decayed,
    OptimizerChoice,
    Rates,
    Sharing,
)
from mlxhog.config.options import option, options

MUON_LR: Final = 3e-3
MUON_WIDTH: Final = 128
"""Width of the model for which a search found that step size; it is scaled to other widths."""
PIECES: Final = 1024
"""Smallest vocabulary of pieces of words for which a search was made; below are bytes."""
PIECES_LR: Final = 0.0065  # as `MUON_LR`, for such a vocabulary
AVERAGED_BETA1: Final = 0.75
"""Muon's beta1 if a step averages the gradients of several workers."""
NESTEROV: Final = 0.1
MANY: Final = 4  # smallest number of workers that look ahead for which Muon takes the next two
LATE_BETA1: Final = 0.95
LATE_NESTEROV: Final = 0.15


@dataclass(frozen=True, kw_only=True)
class Muon(Sharing):
    """Momentum, orthogonalised, for hidden matrices; AdamW for everything else."""

    name: ClassVar[str] = "muon"
    title: ClassVar[str] = "Muon"
    about: ClassVar[str] = "orthogonalised momentum for hidden matrices, AdamW for the rest"
    beside: ClassVar[str] = "adamw"
    shares_by_itself: ClassVar[bool] = True

    nesterov: float | None = option(
        None,
        "weight of the gradient itself in a direction, beside its mean; auto is 0.1, and 0.15 if "
        "it looks ahead of three or more workers",
        low=0, high=1, none="auto",
    )  # fmt: skip
    orthogonalization: str = option(
        "polar3",
        "three steps of Polar Express, or five of Newton and Schulz",
        choices=("polar3", "ns5"),
    )
    rows: int | None = option(
        None, "rows orthogonalised together; fewer are cheaper; all is the whole matrix",
        low=1, none="all", flat="orthogonalization_rows",
    )  # fmt: skip
    every: int | None = option(
        None,
        "orthogonalise whole matrices at every Nth step of a worker only; in between rows one by "
        "one, or as `rows` has it",
        unit="steps", low=2, none="off", flat="orthogonalization_every",
    )  # fmt: skip
    device: str = option(
        "auto",
        "where a worker orthogonalises: on the CPU, by native code, or on its own device, by its "
        "framework; auto is worker for GPU workers",
        choices=("auto", "cpu", "worker"), flat="orthogonalization_device",
    )  # fmt: skip

    def fitted(self, *, hidden: bool, averaged: int = 1, ahead: int = 1) -> OptimizerChoice:
        """Return it with values for its open numbers; AdamW without a hidden matrix."""
        if not hidden:
            return like(AdamW, self).fitted(hidden=hidden, averaged=averaged, ahead=ahead)
        beta1, nesterov, late = self.beta1, self.nesterov, ahead >= MANY
        if beta1 is None and averaged > 1:
            beta1 = AVERAGED_BETA1
        elif beta1 is None:
            beta1 = LATE_BETA1 if late else BETA1
        if nesterov is None:
            nesterov = LATE_NESTEROV if late else NESTEROV
        return replace(self, beta1=beta1, nesterov=nesterov)

    def default_lr(self, width: int, averaged: int = 1) -> float:
        """Return the default of the largest step size.

        A step of a matrix of width d has a spectral norm of about .2 sqrt(d) lr, and its effect on
        activations should not depend on d. Source: Yang, Simon and Bernstein 2023,
        arXiv:2310.17813.
        """
        return MUON_LR * math.sqrt(averaged * MUON_WIDTH / width)

    def rates(self, width: int, vocabulary: int, averaged: int = 1) -> Rates:
        """Return the defaults of all step sizes.

        With bytes one step size is best for all. Rows of a larger vocabulary get few gradients, so
        the embedding wants steps that are many times as long, and hidden matrices want longer ones,
        too (`python benchmarks/defaults.py --only minute`).
        """
        if vocabulary < PIECES:
            return super().rates(width, vocabulary, averaged)
        lr = self.default_lr(width, averaged) * PIECES_LR / MUON_LR
        return Rates(lr=lr, embedding=12.0, head=2.4, scalar=1.5)

    def orthogonalizes_on_worker(self, *, on_gpu: bool) -> bool:
        """Whether a worker orthogonalises matrices on its own device, in place of the CPU."""
        return on_gpu if self.device == "auto" else self.device == "worker"


@dataclass(frozen=True, kw_only=True)
class AdamW(Sharing):
    """Adam with decoupled weight decay."""

    name: ClassVar[str] = "adamw"
    title: ClassVar[str] = "AdamW"
    about: ClassVar[str] = "Adam with decoupled weight decay"


@dataclass(frozen=True, kw_only=True)
class Adan(Adaptive):
    """Means of gradients and of their differences."""

    name: ClassVar[str] = "adan"
    title: ClassVar[str] = "Adan"
    about: ClassVar[str] = "means of gradients and of their differences"

    beta3: float = option(0.92, "decay of the mean of gradients' differences", low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Projected(Adaptive):
    """Channels of hidden matrices, scaled by moments of a random projection; Adam for the rest."""

    beside: ClassVar[str] = "adam"
    has_own_bases: ClassVar[bool] = True

    scale: float | None = option(
        None, "its root multiplies updates; auto is a matrix's shorter side over the rank",
        above=0, none="auto", flat="projection_scale",
    )  # fmt: skip
    every: int = option(
        200, "steps before a projection is drawn anew",
        unit="steps", low=1, flat="projection_every",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Apollo(Projected):
    """One factor for each channel of a hidden matrix."""

    name: ClassVar[str] = "apollo"
    title: ClassVar[str] = "APOLLO"
    about: ClassVar[str] = "gradients scaled channel by channel, by moments of a projection"

    rank: int | None = option(
        None, "rank of projected gradients; auto is a quarter of a matrix's shorter side",
        low=1, none="auto", flat="projection_rank",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ApolloMini(Projected):
    """One factor for a hidden matrix, of a projection of rank 1."""

    name: ClassVar[str] = "apollo-mini"
    title: ClassVar[str] = "APOLLO-Mini"
    about: ClassVar[str] = "gradients scaled matrix by matrix, by moments of a projection of rank 1"


@dataclass(frozen=True, kw_only=True)
class Lion(Averaging):
    """The sign of a momentum.

    It moves every element by lr for any gradient, so P workers move it by up to P * lr while one
    computes. The steps of other rules shrink where gradients of different workers disagree.
    """

    name: ClassVar[str] = "lion"
    title: ClassVar[str] = "Lion"
    about: ClassVar[str] = "the sign of a momentum: every element moves by lr"
    lr_workers: ClassVar[str] = "sqrt"


@dataclass(frozen=True, kw_only=True)
class Momentum(Decayed):
    """SGD with momentum, as torch.optim.SGD."""

    name: ClassVar[str] = "momentum"
    title: ClassVar[str] = "SGD with momentum"
    about: ClassVar[str] = "gradient descent with momentum, as torch.optim.SGD"

    momentum: float = option(0.9, "share of the last step that is added again", low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class SGD(Decayed):
    """Plain stochastic gradient descent."""

    name: ClassVar[str] = "sgd"
    title: ClassVar[str] = "plain SGD"
    about: ClassVar[str] = "plain gradient descent"


@dataclass(frozen=True, kw_only=True)
class Soap(Adaptive):
    """Adam in the eigenbases of Shampoo's preconditioners, for hidden matrices."""

    name: ClassVar[str] = "soap"
    title: ClassVar[str] = "SOAP"
    about: ClassVar[str] = "Adam in eigenbases of second moments for hidden matrices, AdamW beside"
    beside: ClassVar[str] = "adamw"
    has_own_bases: ClassVar[bool] = True

    every: int = option(
        10, "steps between two refreshes of its eigenbases",
        unit="steps", low=1, flat="precondition_every",
    )  # fmt: skip


for _optimizer in (Muon, AdamW, Adan, Apollo, ApolloMini, Lion, Momentum, SGD, Soap):
    OPTIMIZERS.register(_optimizer)
DEFAULT: Final = Muon


def of(config: Any) -> OptimizerChoice:
    """Return the optimizer of a configuration; the default if it is open."""
    chosen: OptimizerChoice = DEFAULT() if config.optimizer is None else config.optimizer
    return chosen


def by_name(name: str) -> OptimizerChoice:
    """Return the optimizer of a name, with its defaults.

    Raises:
        UnknownChoice: no optimizer has that name.
    """
    choice: Any = OPTIMIZERS.find(name)
    made: OptimizerChoice = choice()
    return made


def like(kind: type[Averaging], other: OptimizerChoice) -> Averaging:
    """Return an optimizer of a kind, with the numbers that it shares with another one."""
    both = options(kind).keys() & options(type(other)).keys()
    return kind(**{name: getattr(other, name) for name in both})


def open_numbers(config: Any) -> dict[str, object]:
    """Return lr and the optimizer's numbers that may be "auto", by their flat names."""
    choice = of(config)
    numbers = {
        spec.flat: getattr(choice, name)
        for name, spec in options(type(choice)).items()
        if spec.optional and spec.none == "auto"
    }
    return {"lr": config.lr, **dict(sorted(numbers.items()))}
