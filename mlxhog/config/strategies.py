"""Strategies as a run chooses them: numbers and facts of each; `mlxhog.strategies` runs them.

A strategy of one's own is a class with its numbers, mostly a subclass of one of these, and the
class that runs it; see `mlxhog.strategies.runs` and examples/my_strategy.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config.choices import STRATEGIES, Rules
from mlxhog.config.options import option
from mlxhog.config.rules import SimulatedStaleness
from mlxhog.config.strategy import (
    Apart,
    FedBack,
    InRounds,
    LateSteps,
    LookAhead,
    Paced,
    Sparse,
    StrategyChoice,
)


@dataclass(frozen=True, kw_only=True)
class Sync(InRounds):
    """Gradients of all workers are averaged, one step a round."""

    name: ClassVar[str] = "sync"
    about: ClassVar[str] = "rounds: a step is along the mean of all workers' gradients"
    repeats: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    backup_workers: int = option(
        0,
        "workers that a round does not wait for; late gradients are dropped, so text that takes "
        "long to compute counts less",
        low=0,
    )

    rules: ClassVar[Rules] = (
        ("backup_workers", "backup_workers & sync_shares=speed",
         "shares by speed already let slow workers compute less; use one of the two"),
        ("determinism", "determinism=rounds & sync_shares!=equal",
         "rounds, but shares by speed follow from times that are measured; leave sync_shares out"),
        ("determinism", "determinism=rounds & backup_workers",
         "rounds, but timing decides which gradients backup_workers drops; leave backup_workers "
         "out"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Hogwild(LookAhead, Sparse, FedBack, InRounds, Paced):
    """Lock-free workers."""

    name: ClassVar[str] = "hogwild"
    about: ClassVar[str] = "lock-free: each worker adds its own steps, and none waits for another"
    elastic: ClassVar[bool] = True
    recorded: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = True
    shares_moments: ClassVar[bool] = True

    async_after: float = option(
        0.0, "part of the budget to train in sync first", low=0, high=1, train_only=True
    )
    blocks: str = option(
        "all",
        "parameters that a worker writes: all, or only blocks that no other worker writes",
        choices=("all", "disjoint"),
        train_only=True,
    )
    rotate_every: int = option(
        100,
        "blocks=disjoint: steps before a worker moves to other blocks",
        unit="steps",
        low=1,
        train_only=True,
    )

    @property
    def writes_whole_steps(self) -> bool:
        """Whether a worker adds its step to every parameter."""
        return super().writes_whole_steps and self.blocks == "all"

    @property
    def is_lock_free(self) -> bool:
        """Whether workers take any batch from the first step to the last."""
        return self.async_after == 0 and self.blocks == "all"

    @property
    def overlaps(self) -> bool:
        """Whether a worker may read for its next gradient before it adds the step of the last."""
        return self.is_lock_free

    rules: ClassVar[Rules] = (
        ("rotate_every", "blocks=all & rotate_every!=100",
         "blocks is all, so no worker changes its blocks; add blocks=disjoint, or leave "
         "rotate_every out"),
        ("sync_shares", "not async_after & sync_shares!=equal",
         "hogwild has rounds after async_after only; add that, or take sync"),
        *((name, f"async_after & {name}!={whole}",
           "is for workers that write their own steps, without async_after; leave one of them out")
          for name, whole in (
            ("sparsify", "none"), ("blocks", "all"), ("delay_feedback", "false"))),
        ("blocks", "is_adapted & blocks=disjoint",
         "disjoint, so updates of others are of other blocks and make no gradient late; leave it "
         "out, or the rule for late gradients"),
        *((name, f"delay_feedback & {name}!={whole}",
           f"is {{{name}}}, and only steps that the CPU writes whole are corrected; leave it out, "
           "or delay_feedback") for name, whole in (("sparsify", "none"), ("blocks", "all"))),
        ("async_after", "async_after & backoff_epochs",
         "the schedule counts epochs in steps of one size, and steps of rounds have more batches; "
         "give its steps, or leave async_after out"),
        ("overlap", "overlap & delay_compensation!=none",
         "delay_compensation needs the parameters of a gradient, which the next read replaces; "
         "leave it out"),
        ("overlap", "overlap & delay_feedback",
         "delay_feedback counts the updates since a read that follows the worker's own step; leave "
         "it out"),
        ("overlap", "overlap & read=live",
         "live reads would see the step in the middle of the next gradient; set read=snapshot"),
        ("overlap", "overlap & gpu_write!=cpu",
         "gpu_write is {gpu_write}: the device that adds the step computes the gradient; set "
         "gpu_write=cpu"),
        ("overlap", "overlap & orthogonalization_device=worker",
         "orthogonalization_device is worker, which computes the next gradient meanwhile; set "
         "orthogonalization_device=cpu"),
        ("moments", "blocks=disjoint & moments=shared",
         "the moments of disjoint blocks go from worker to worker with the block; leave it out"),
        *(("determinism", f"determinism=record|replay & {name}!={whole}",
           f"{{determinism}}, but {why}; leave {name} out") for name, whole, why in (
            ("async_after", "0.0", "async_after begins in rounds"),
            ("blocks", "all", "blocks=disjoint has no record"),
            ("sparsify", "none", "a sparsified step reads parameters without a lock"),
            ("delay_compensation", "none",
             "delay compensation reads parameters without a lock"),
            ("delay_feedback", "false", "the correction of a late step has no record"),
        )),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Serial(LookAhead, Sparse):
    """One worker."""

    name: ClassVar[str] = "serial"
    about: ClassVar[str] = "one worker alone, the reference"
    one_process: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    rules: ClassVar[Rules] = (
        ("predict", "predict=last & strategy=*",
         "last is for workers that add their own steps, not for serial; leave it out"),
    )  # fmt: skip

    @property
    def is_lock_free(self) -> bool:
        """Whether workers take any batch from the first step to the last."""
        return True


@dataclass(frozen=True, kw_only=True)
class RoundRobin(LookAhead, FedBack, Apart):
    """Workers that apply in turn."""

    name: ClassVar[str] = "round_robin"
    about: ClassVar[str] = "workers add their steps in turn, each P - 1 updates late"
    repeats: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    rules: ClassVar[Rules] = (
        ("predict", "predict=own", "own, but round_robin has none and last only; set one of them"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AsyncPS(Paced):
    """A parameter server."""

    name: ClassVar[str] = "async_ps"
    about: ClassVar[str] = "a parameter server: gradients are applied one by one, as they arrive"
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    rules: ClassVar[Rules] = (
        ("moments", "moments=shared",
         "shared, but {strategy} has one optimizer state anyway; leave it out"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SSP(AsyncPS):
    """A parameter server whose workers keep together (Ho et al. 2013)."""

    name: ClassVar[str] = "ssp"
    about: ClassVar[str] = "a parameter server whose workers stay within some steps of each other"

    slack: int = option(
        3,
        "steps that a worker may be ahead of the slowest when it begins a step",
        unit="steps",
        low=0,
    )


@dataclass(frozen=True, kw_only=True)
class Locked(Paced):
    """Workers that hold one lock."""

    name: ClassVar[str] = "locked"
    about: ClassVar[str] = "one lock around each step, to measure what locking costs"
    writes_alone: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Aig(Paced):
    """Workers that lock the blocks they touch."""

    name: ClassVar[str] = "aig"
    about: ClassVar[str] = "locks on just the blocks that a step touches"
    writes_alone: ClassVar[bool] = True

    rules: ClassVar[Rules] = tuple(
        (name, wrong,
         f"{{{name}}}, but aig writes under the locks of what it touches; leave it out")
        for name, wrong in (("write", "write=cas"), ("gpu_write", "gpu_write!=cpu"))
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sim(FedBack, LookAhead, LateSteps):
    """One process that simulates workers."""

    name: ClassVar[str] = "sim"
    about: ClassVar[str] = "one process simulates workers whose gradients have a chosen age"
    one_process: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    staleness: str = option(
        "fixed:1",
        "age of each gradient in steps: fixed:N, uniform:LOW:HIGH, geometric:MEAN, "
        "histogram:0=10,1=80 (age=weight), or speed:1,1,4 (seconds for a gradient of each "
        "simulated worker); fixed:N simulates N + 1 workers, the others but speed one",
        flat="sim_staleness",
        train_only=True,
        reads=SimulatedStaleness.parse,
    )

    rules: ClassVar[Rules] = (
        ("predict", "predict=own", "own, but sim has none and last only; set one of them"),
        ("predict", "predict=last & sim_staleness!=fixed:*",
         "last looks ahead by a fixed age, and staleness is {sim_staleness}; set "
         "staleness=fixed:N, or leave predict out"),
    )  # fmt: skip

    @property
    def rule(self) -> SimulatedStaleness:
        """The worker and the age of each step's gradient."""
        return SimulatedStaleness.parse(self.staleness)

    def steppers(self, workers: int) -> int:
        """The simulated workers."""
        return self.rule.workers


# -- local methods: workers train copies of the parameters -----------------------------------------

AVERAGE_EVERY = 16  # default of the steps of each worker between two averages


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

    rules: ClassVar[Rules] = (
        *((name, f"split=none & {term}", "is for split=dirichlet; add that, or leave it out")
          for name, term in (("split_alpha", "split_alpha!=1.0"), ("clients", "clients"))),
        ("gpu_write", "gpu_write=metal*",
         "{gpu_write}, but the CPU adds to each worker's own copy; leave it out"),
        ("moments", "moments=shared",
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

    @property
    def local_steps(self) -> int:
        """H: steps of each worker in a round."""
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


for _strategy in (
    Sync, Hogwild, Serial, RoundRobin, LocalSGD, AvgRuns, FedProx, Scaffold, DiLoCo, AsyncPS, SSP,
    Locked, Aig, Sim,
):  # fmt: skip
    STRATEGIES.register(_strategy)
