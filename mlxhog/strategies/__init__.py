"""Strategies: when a worker reads, how it writes, and when workers meet.

A strategy is one object per worker process. The worker asks it for a lease (which batch), lets it
fill the backend's inbox, computes a gradient, and hands the gradient back to it. Everything a
strategy touches is in its `Context`; all strategies run in the same process on the same arena, so
that they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Entry
from mlxhog.backends.backend import Backend, Grads
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.data.ledger import Ledger
from mlxhog.errors import ConfigError
from mlxhog.models.families import ModelConfig
from mlxhog.optim import Optimizer, Target, clip, updates
from mlxhog.optim.metal_steps import MetalSteps


class Idle(Enum):
    """Why there is no lease."""

    WAIT = "nothing to do now, ask again"
    DONE = "the budget is used up, or the run is stopping"


@dataclass(frozen=True)
class Lease:
    """A batch this worker holds until it is applied or given back."""

    epoch: int
    ticket: int


@dataclass(frozen=True)
class Outcome:
    """What became of one gradient."""

    applied: bool
    staleness: int = 0
    version: int = 0


@dataclass
class Context:
    """One worker's view of the run."""

    arena: Arena
    ledger: Ledger
    entry: Entry
    slot: int
    owner: int
    workers: int
    backend: Backend
    optimizer: Optimizer
    metal: MetalSteps | None
    schedule: Callable[[float, int], float]
    budget: Budget
    step_limit: int | None
    config: TrainConfig
    decay: frozenset[str]
    model: ModelConfig

    @property
    def rank(self) -> int:
        """This worker's place among the run's workers, from 0."""
        return self.slot - 1

    def target(self, state_slot: int) -> Target:
        """Where optimizer steps go: the parameters, and the moments kept by one slot."""
        arena = self.arena
        return Target(
            flat=arena.params,
            slots=arena.layout.slots,
            locks=arena.locks(self.slot),
            mode=updates.WRITE_MODES[arena.write],
            private={
                name: arena.segment(f"{name}.{state_slot}")
                for name in self.optimizer.state_segments
            },
            shared={name: arena.segment(name) for name in self.optimizer.shared_segments},
            decay=self.decay,
            metal=self.metal,
        )

    @property
    def reads_live(self) -> bool:
        """Whether the backend computes with the shared parameters themselves."""
        return self.backend.inbox.ctypes.data == self.arena.params.ctypes.data

    def seconds(self) -> float:
        """Time since training started, or 0 before."""
        start = self.arena.counters.load("start_ns")
        return (monotonic_ns() - start) / 1e9 if start else 0.0

    def take_limit(self) -> None:
        """Take over how long training may take, which is known when it starts."""
        if limit_ns := self.arena.counters.load("limit_ns"):
            self.budget = replace(self.budget, seconds=limit_ns / 1e9)

    def used_up(self) -> bool:
        """Whether the tokens of the budget are used up, or the time before a step would end.

        Steps are claimed singly.
        """
        seconds, tokens = self.budget.seconds, self.budget.tokens
        if seconds is not None and self.seconds() + self.entry.step_s >= seconds:
            return True
        return tokens is not None and self.arena.counters.load("tokens") >= tokens

    def stopping(self) -> bool:
        """Whether the supervisor has ended the training phase."""
        return not self.training()

    def training(self) -> bool:
        """Whether the training phase is on."""
        return self.arena.counters.load("command") == Command.TRAIN

    def paused(self) -> bool:
        """Whether the supervisor wants the arena to hold still (for a checkpoint)."""
        return bool(self.arena.counters.load("pause"))

    def progress(self) -> float:
        """Share of the whole run that is over, in [0, 1]."""
        counters = self.arena.counters
        return self.budget.progress(
            steps=counters.load("steps"), tokens=counters.load("tokens"), seconds=self.seconds()
        )

    def lr(self) -> float:
        """Step size of the next update."""
        return self.schedule(self.progress(), self.arena.counters.load("version"))

    def grad_scale(self, norm: float) -> float:
        """The factor that clips a gradient of this norm."""
        return clip.clip_factor(norm, self.config.clip)


class Strategy(Protocol):
    """One worker's part of a training strategy."""

    def claim(self) -> Lease | Idle:
        """Take the next batch. `Idle.DONE` once no more will come in this training phase."""

    def read(self) -> None:
        """Make the parameters this gradient is evaluated at visible to the backend."""

    def write(self, grads: Grads, lease: Lease, samples: int) -> Outcome:
        """Apply the mean gradient of `samples` sequences, or drop it where it is not finite.

        Settles the lease.
        """

    def counts_step(self) -> bool:
        """Whether the batch just written is a step of the run (of P averaged ones, one is)."""


def copy_to_inbox(context: Context) -> None:
    """Plain snapshot: the model as it stands, untouched by any prediction."""
    if context.reads_live:
        return
    if context.config.strategy == "avg_runs" and context.training():
        from mlxhog.strategies import avg_runs

        avg_runs.average(context.arena, context.workers, context.backend.inbox)
    else:
        updates.snapshot(context.backend.inbox, context.arena.params)
    context.backend.refresh()


def segments(config: TrainConfig, workers: int, n_params: int) -> dict[str, tuple[str, int]]:
    """Extra arena segments a strategy needs; see `arena.plan`."""
    from mlxhog.strategies import avg_runs, disjoint, round_robin, sync

    if config.strategy == "sync" or config.async_after > 0:
        return sync.sync_segments(workers, n_params)
    if config.strategy == "round_robin":
        return round_robin.turn_segments(workers)
    if config.blocks == "disjoint":
        return disjoint.disjoint_segments(workers, n_params)
    return avg_runs.copy_segments(workers) if config.strategy == "avg_runs" else {}


def state_slots(config: TrainConfig, workers: int, arena: Arena) -> tuple[int, ...]:
    """Worker slots whose private optimizer state means something now.

    While workers apply one averaged gradient together, the first one's is that of all; so it is
    where the state goes with the blocks that a worker holds.
    """
    from mlxhog.strategies import sync

    together = (
        config.blocks == "disjoint"
        or config.strategy == "sync"
        or (config.async_after > 0 and not sync.is_over(arena.segment("sync.words"), workers))
    )
    return (1,) if together else tuple(range(1, workers + 1))


def starts_synchronous(config: TrainConfig, workers: int) -> bool:
    """Whether a share of the run is synchronous and the rest is not."""
    return config.strategy == "hogwild" and config.async_after > 0 and workers > 1


def build(context: Context) -> Strategy:
    """The strategy that `config.strategy` names, for this worker.

    Raises:
        ConfigError: unknown name.
    """
    from mlxhog.strategies import avg_runs, disjoint, hogwild, round_robin, switch, sync

    name = context.config.strategy
    if starts_synchronous(context.config, context.workers):
        return switch.SyncThenHogwild(context)
    own_blocks = context.config.blocks == "disjoint"
    kinds: dict[str, Callable[[Context], Strategy]] = {
        "serial": hogwild.Hogwild,
        "hogwild": disjoint.Disjoint if own_blocks else hogwild.Hogwild,
        "sync": sync.Sync,
        "round_robin": round_robin.RoundRobin,
        "avg_runs": avg_runs.AvgRuns,
    }
    if name not in kinds:
        raise ConfigError(f"no strategy {name!r}; choose from {', '.join(kinds)}")
    return kinds[name](context)
