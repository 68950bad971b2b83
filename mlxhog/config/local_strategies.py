"""Local methods as a run chooses them: strategies whose workers train copies of the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mlxhog.config import optimizers
from mlxhog.config.options import is_set, option
from mlxhog.config.strategy import Pairs, StrategyChoice

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

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

    def broken_rules(self) -> Iterable[str]:
        """Yield numbers of a text that is not divided."""
        yield from super().broken_rules()
        if self.split == "none":
            for name in ("split_alpha", "clients"):
                if is_set(self, name):
                    yield f"{name}: is for split=dirichlet; add that, or leave it out"

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield options that need parameters of all workers."""
        yield from super().beside(config)
        if config.gpu_write.startswith("metal"):
            problem = f"{config.gpu_write}, but the CPU adds to each worker's own copy"
            yield "gpu_write", f"{problem}; leave it out"
        if optimizers.of(config).asks_to_share:
            yield "moments", "shared, but the runs are independent; leave it out, or use hogwild"


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

    @property
    def local_steps(self) -> int:
        """H: steps of each worker in a round with equal work."""
        return AVERAGE_EVERY if self.average_every is None else self.average_every

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield work that timing decides, if the run must repeat."""
        yield from super().beside(config)
        if config.determinism == "rounds" and self.local_work == "speed":
            yield "local_work", "speed follows measured times, so reruns differ; leave it out"


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
