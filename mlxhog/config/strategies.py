"""Strategies as a run chooses them: numbers and facts of each.

Local methods are in `local_strategies.py`. `mlxhog.strategies` runs them.

A strategy of one's own is a class with its numbers, mostly a subclass of one of these, and the
class that runs it; see `mlxhog.strategies.runs` and examples/my_strategy.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mlxhog.config import optimizers
from mlxhog.config.ages import SimulatedStaleness
from mlxhog.config.choices import STRATEGIES
from mlxhog.config.local_strategies import AvgRuns, DiLoCo, FedProx, LocalSGD, Scaffold
from mlxhog.config.options import option
from mlxhog.config.strategy import (
    Apart,
    FedBack,
    InRounds,
    LateSteps,
    LookAhead,
    Paced,
    Pairs,
    Sparse,
    uncorrected,
    unread,
)

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig


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

    def broken_rules(self) -> Iterable[str]:
        """Yield two remedies for slow workers that exclude each other."""
        yield from super().broken_rules()
        if self.backup_workers and self.shares == "speed":
            problem = "shares by speed already let slow workers compute less; use one of the two"
            yield f"backup_workers: {problem}"

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield numbers that let timing decide, if the run must repeat."""
        yield from super().beside(config)
        if config.determinism != "rounds":
            return
        if self.shares != "equal":
            problem = "rounds, but shares by speed follow from times that are measured"
            yield "determinism", f"{problem}; leave sync_shares out"
        if self.backup_workers:
            problem = "rounds, but timing decides which gradients backup_workers drops"
            yield "determinism", f"{problem}; leave backup_workers out"


@dataclass(frozen=True, kw_only=True)
class Hogwild(LookAhead, Sparse, FedBack, InRounds, Paced):
    """Lock-free workers."""

    name: ClassVar[str] = "hogwild"
    about: ClassVar[str] = "lock-free: each worker adds its own steps, and none waits for another"
    elastic: ClassVar[bool] = True
    recorded: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = True
    shares_moments: ClassVar[bool] = True

    async_after: float = option(0.0, "part of the budget to train in sync first", low=0, high=1)
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

    def broken_rules(self) -> Iterable[str]:
        """Yield numbers that have no effect together, or contradict each other."""
        yield from super().broken_rules()
        if self.blocks == "all" and self.rotate_every != 100:
            problem = "blocks is all, so no worker changes its blocks; add blocks=disjoint"
            yield f"rotate_every: {problem}, or leave rotate_every out"
        if self.async_after == 0 and self.shares != "equal":
            yield "sync_shares: hogwild has rounds after async_after only; add that, or take sync"
        if self.async_after > 0:
            for number, is_set in (
                ("sparsify", self.sparsify != "none"), ("blocks", self.blocks != "all"),
                ("delay_feedback", self.delay_feedback),
            ):  # fmt: skip
                if is_set:
                    problem = "is for workers that write their own steps, without async_after"
                    yield f"{number} {problem}; leave one of them out"
        if self.is_adapted and self.blocks == "disjoint":
            problem = "disjoint, so updates of others are of other blocks and make no gradient late"
            yield f"blocks: {problem}; leave it out, or the rule for late gradients"
        if self.delay_feedback:
            if self.predict not in ("auto", "none"):
                problem = f"{self.predict} already expects the pending steps of other workers"
                yield f"predict: {problem}; leave it out, or delay_feedback"
            for number, value, whole in (
                ("sparsify", self.sparsify, "none"), ("blocks", self.blocks, "all"),
            ):  # fmt: skip
                if value != whole:
                    yield f"{number}: {uncorrected(value)}"

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield options that lock-free workers exclude."""
        yield from super().beside(config)
        if config.overlap:
            for is_set, problem in (
                (self.delay_compensation != "none", "delay_compensation needs the parameters of a "
                 "gradient, which the next read replaces; leave it out"),
                (self.delay_feedback, "delay_feedback counts the updates since a read that follows "
                 "the worker's own step; leave it out"),
                (config.read == "live", "live reads would see the step in the middle of the next "
                 "gradient; set read=snapshot"),
                (config.gpu_write != "cpu", f"gpu_write is {config.gpu_write}: the device that "
                 "adds the step computes the gradient; set gpu_write=cpu"),
                (optimizers.of(config).orthogonalizes_on_worker(on_gpu=False),
                 "orthogonalization_device is worker, which computes the next gradient meanwhile; "
                 "set orthogonalization_device=cpu"),
            ):  # fmt: skip
                if is_set:
                    yield "overlap", problem
        if self.blocks == "disjoint" and optimizers.of(config).asks_to_share:
            problem = "the moments of disjoint blocks go from worker to worker with the block"
            yield "moments", f"{problem}; leave it out"
        if config.determinism in ("record", "replay"):
            for is_set, problem in (
                (self.async_after > 0, "async_after begins in rounds; leave it out"),
                (self.blocks != "all", "blocks=disjoint has no record; leave it out"),
                (self.sparsify != "none", "a sparsified step reads parameters without a lock; "
                 "leave sparsify out"),
                (self.delay_compensation != "none", "delay compensation reads parameters without "
                 "a lock; leave delay_compensation out"),
                (self.delay_feedback, "the correction of a late step has no record; leave "
                 "delay_feedback out"),
            ):  # fmt: skip
                if is_set:
                    yield "determinism", f"{config.determinism}, but {problem}"


@dataclass(frozen=True, kw_only=True)
class Serial(LookAhead, Sparse):
    """One worker."""

    name: ClassVar[str] = "serial"
    about: ClassVar[str] = "one worker alone, the reference"
    one_process: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    @property
    def is_lock_free(self) -> bool:
        """Whether workers take any batch from the first step to the last."""
        return True

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield numbers that need other workers."""
        yield from super().beside(config)
        if self.predict == "last":
            problem = "last is for workers that add their own steps, not for serial"
            yield "predict", f"{problem}; leave it out"


@dataclass(frozen=True, kw_only=True)
class RoundRobin(LookAhead, FedBack, Apart):
    """Workers that apply in turn."""

    name: ClassVar[str] = "round_robin"
    about: ClassVar[str] = "workers add their steps in turn, each P - 1 updates late"
    repeats: ClassVar[bool] = True
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    def broken_rules(self) -> Iterable[str]:
        """Yield parameters at which no gradient can be taken."""
        yield from super().broken_rules()
        if self.predict == "own":
            yield "predict: own, but round_robin has none and last only; set one of them"
        if self.delay_feedback and self.predict == "last":
            problem = "last already expects the pending steps of other workers"
            yield f"predict: {problem}; leave it out, or delay_feedback"


@dataclass(frozen=True, kw_only=True)
class AsyncPS(Paced):
    """A parameter server."""

    name: ClassVar[str] = "async_ps"
    about: ClassVar[str] = "a parameter server: gradients are applied one by one, as they arrive"
    reads_copies: ClassVar[bool] = True
    writes_alone: ClassVar[bool] = True

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield moments of all, which one optimizer state has anyway."""
        yield from super().beside(config)
        if optimizers.of(config).asks_to_share:
            problem = f"shared, but {self.name} has one optimizer state anyway; leave it out"
            yield "moments", problem


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

    def beside(self, config: TrainConfig) -> Pairs:
        """Yield other ways to write."""
        yield from super().beside(config)
        if config.write == "cas" or config.gpu_write != "cpu":
            name = "write" if config.write == "cas" else "gpu_write"
            problem = f"{getattr(config, name)}, but aig writes under the locks of what it touches"
            yield name, f"{problem}; leave it out"


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
    )

    @property
    def rule(self) -> SimulatedStaleness:
        """The worker and the age of each step's gradient."""
        return SimulatedStaleness.parse(self.staleness)

    def steppers(self, workers: int) -> int:
        """The simulated workers."""
        return self.rule.workers

    def broken_rules(self) -> Iterable[str]:
        """Yield ages that cannot be read, and predictions of what is not known, too."""
        yield from super().broken_rules()
        yield from unread("staleness", lambda _: self.rule, self.staleness)
        if self.predict == "own":
            yield "predict: own, but sim has none and last only; set one of them"
        if self.predict != "last":
            return
        if not self.staleness.startswith("fixed:"):
            problem = f"last looks ahead by a fixed age, and staleness is {self.staleness}"
            yield f"predict: {problem}; set staleness=fixed:N, or leave predict out"
        if self.delay_feedback:
            problem = "last already expects the pending steps of other workers"
            yield f"predict: {problem}; leave it out, or delay_feedback"


for _strategy in (
    Sync, Hogwild, Serial, RoundRobin, LocalSGD, AvgRuns, FedProx, Scaffold, DiLoCo, AsyncPS, SSP,
    Locked, Aig, Sim,
):  # fmt: skip
    STRATEGIES.register(_strategy)
STRATEGIES.advise(
    "cyclades",
    "every gradient of a network moves all its dense parameters, so all batches conflict: one "
    "component, at the speed of serial; set strategy=serial, or round_robin, which repeats bit for "
    "bit, too; sparse problems have it: mlxhog classic svm --scheme cyclades",
)
