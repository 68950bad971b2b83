"""Local methods as a run chooses them: strategies whose workers train copies of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config import optimizers
from mlxhog.config.choices import Rules
from mlxhog.config.options import is_set, option
from mlxhog.config.strategy import StrategyChoice

AVERAGE_EVERY = 16
"""Default of the steps of each worker between two averages."""


@dataclass(frozen=True, kw_only=True)
class Copies(StrategyChoice):
    """What all local methods have: workers may have texts of their own."""

    repeats: ClassVar[bool] = True
    copies: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    split: str = option(
        "none",
        "text of a worker: any of it, or that of clients, whose shares of each class of documents "
        "a Dirichlet distribution draws",
        choices=("none", "dirichlet"),
        train_only=True,
    )
    split_alpha: float = option(
        1.0,
        "split=dirichlet: similarity of the clients' texts; 0 is a class for one client",
        low=0,
        train_only=True,
    )
    clients: int | None = option(
        None,
        "split=dirichlet: number of clients, of which each worker trains its own in turn; auto is "
        "one for every worker",
        low=1,
        none="auto",
        train_only=True,
    )

    rules: ClassVar[Rules] = tuple(
        (name, lambda s, name=name: s.split == "none" and is_set(s, name),
         "is for split=dirichlet; add that, or leave it out") for name in ("split_alpha", "clients")
    )  # fmt: skip
    beside: ClassVar[Rules] = (
        ("gpu_write", lambda s, c: c.gpu_write.startswith("metal"),
         "{1.gpu_write}, but the CPU adds to each worker's own copy; leave it out"),
        ("moments", lambda s, c: optimizers.of(c).asks_to_share,
         "shared, but the runs are independent; leave it out, or use hogwild"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AvgRuns(Copies):
    """Independent runs, averaged at the end."""

    name: ClassVar[str] = "avg_runs"
    about: ClassVar[str] = "independent runs, averaged once at the end"


@dataclass(frozen=True, kw_only=True)
class Averaged(Copies):
    """Numbers of local methods that average during the run."""

    average_every: int | None = option(
        None,
        f"steps of each worker between two averages of the parameters; auto is {AVERAGE_EVERY}",
        unit="steps",
        low=1,
        none="auto",
    )
    local_work: str = option(
        "equal",
        "steps of each worker between two averages: average_every for all, or fewer for slower "
        "ones",
        choices=("equal", "speed"),
    )

    beside: ClassVar[Rules] = (
        ("local_work", lambda s, c: c.determinism == "rounds" and s.local_work == "speed",
         "speed follows measured times, so reruns differ; leave it out"),
    )  # fmt: skip

    @property
    def local_steps(self) -> int:
        """H: steps of each worker in a round with equal work."""
        return AVERAGE_EVERY if self.average_every is None else self.average_every


@dataclass(frozen=True, kw_only=True)
class LocalSGD(Averaged):
    """Local runs that meet every H steps."""

    name: ClassVar[str] = "local_sgd"
    about: ClassVar[str] = "some steps of each worker on its own, then the average"

    local_after: int = option(
        0,
        "average after every step until the run has taken this many (post-local SGD)",
        unit="steps",
        low=0,
    )


@dataclass(frozen=True, kw_only=True)
class FedProx(Averaged):
    """Local SGD whose steps are pulled towards the last average."""

    name: ClassVar[str] = "fedprox"
    about: ClassVar[str] = "local_sgd whose steps are pulled towards the last average"

    mu: float = option(
        0.01, "pull of the last average on local steps; 0 is local_sgd", low=0, flat="prox_mu"
    )
    prox: str = option(
        "grad",
        "the pull is part of the gradient, or a separate step beside the optimizer's",
        choices=("grad", "decoupled"),
    )


@dataclass(frozen=True, kw_only=True)
class Scaffold(Averaged):
    """Local SGD with control variates."""

    name: ClassVar[str] = "scaffold"
    about: ClassVar[str] = "local_sgd corrected by control variates, for texts that differ"


@dataclass(frozen=True, kw_only=True)
class DiLoCo(Averaged):
    """Local steps, and an outer step along their mean."""

    name: ClassVar[str] = "diloco"
    about: ClassVar[str] = "some steps of each worker, then an outer step along their mean"
    writes_alone: ClassVar[bool] = False  # the workers of a replica write it side by side

    replicas: int | None = option(
        None,
        "copies of the parameters, each trained lock-free by its workers; auto is one for every "
        "worker",
        low=1,
        none="auto",
    )
    outer_lr: float = option(0.7, "step size of the outer step", above=0)
    outer_momentum: float = option(0.9, "Nesterov momentum of the outer step", low=0, below=1)
