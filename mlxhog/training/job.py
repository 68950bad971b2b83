"""The set-up that all workers of a run share (`Setup`), and the job of each of them (`Job`).

What differs between kinds of training comes as functions that the worker calls: a token file is
mapped, and rows of a task are drawn, in the process that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from mlxhog import arena
from mlxhog.arena import ArenaHandle, Layout, control, published
from mlxhog.arena.control import Counters, Ring
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.schedules import Rate
from mlxhog.data.batch import Batch
from mlxhog.machine.workers import WorkerSpec
from mlxhog.models.families import ModelConfig
from mlxhog.models.sampled_head import SampledHead
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import Optimizer
from mlxhog.strategies import Context, Strategy
from mlxhog.training.kernel_choice import Writers


class Batches(Protocol):
    """The training batches of every epoch, by ticket; the same in every process."""

    @property
    def n_tickets(self) -> int:
        """Tickets per epoch."""

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket."""

    def example(self) -> Batch:
        """Return a batch of the same shape as many, to try a model with."""


class SideJobs(Protocol):
    """What a worker does beside its steps."""

    def serve(self) -> None:
        """Do what the supervisor asks for, if no other worker has taken it on."""

    def evaluate_rest(self) -> None:
        """Do this worker's part of the evaluation at the end of a run."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that has passed every check, as far as its workers are concerned.

    Attributes:
        config: the options of the run, none of which is open.
        strategy: of the run.
        model: the architecture.
        workers: backend and threads of each worker, those that have joined included; worker k has
            slot k + 1.
        writers: who adds their steps, and in which write mode.
        kernels: form of the model's operations of each worker; never "auto".
        notes: what the user should know about these choices.
        layout: of the arena.
        decay: names of the parameters that weight decay applies to.
        gpu_share: of the GPU, for each worker that uses it.
        batches: opens what is trained on.
        schedule: makes the step sizes.
        side_jobs: opens what is done beside the steps.
        sampled: words of the training loss; None is the whole vocabulary.
    """

    config: TrainConfig
    strategy: Strategy
    model: ModelConfig
    workers: tuple[WorkerSpec, ...]
    writers: Writers
    kernels: tuple[str, ...]
    notes: tuple[str, ...]
    layout: Layout
    decay: frozenset[str]
    gpu_share: GPUShare
    batches: Callable[[], Batches]
    schedule: Callable[[], Rate]
    side_jobs: Callable[[Job, Context, Ring], SideJobs]
    sampled: SampledHead | None = None

    def for_workers(self) -> Setup:
        """This without what a plan knows beside it: small enough to be sent to every worker."""
        return Setup(**{field.name: getattr(self, field.name) for field in fields(Setup)})

    def with_worker(self, slot: int, spec: WorkerSpec, kernels: str) -> Setup:
        """This with another worker in a slot, which is one of its own or the next."""
        before, after = slice(slot - 1), slice(slot, None)
        return replace(
            self,
            workers=(*self.workers[before], spec, *self.workers[after]),
            kernels=(*self.kernels[before], kernels, *self.kernels[after]),
        )


def plan_layout(
    spec: Mapping[str, ParamSpec],
    strategy: Strategy,
    optimizer: Optimizer,
    n_tickets: int,
    tables: Mapping[str, tuple[str, int]],
    *,
    live: bool = False,
    others: Sequence[tuple[Strategy, Optimizer]] = (),
) -> Layout:
    """Lay out the arena of a run.

    Where the strategy is still to be chosen, what only one of them needs (copies of gradients,
    private or shared moments) takes the same bytes as what another needs, so the arena is as large
    as for the one that needs most.

    Args:
        spec: the model's parameters.
        strategy: of the run.
        optimizer: of the run.
        n_tickets: batches of an epoch.
        tables: segments of its evaluations and the like, as `arena.plan` takes them.
        live: whether to keep copies of the parameters for readers.
        others: strategies that may be chosen instead, each with the optimizer as it is under it.
    """
    every = [(strategy, optimizer), *others]
    max_workers = max(one.slots for one, _ in every)
    rules = [rule for _, rule in every]
    private = [m for m in optimizer.state_segments if all(m in r.state_segments for r in rules)]
    shared = [m for m in optimizer.shared_segments if all(m in r.shared_segments for r in rules)]
    needs = [_own_segments(one, rule, {*private, *shared}, len(spec)) for one, rule in every]
    common = {name: place for name, place in needs[0].items() if all(name in n for n in needs)}
    slots = range(1, max_workers + 1)
    return arena.plan(
        spec,
        max_workers=max_workers,
        private=private,
        state=optimizer.state_shapes({name: one.shape for name, one in spec.items()}),
        shared=shared,
        n_tickets=n_tickets,
        extra={
            **{f"ring.{slot}": ("uint8", control.RING_BYTES) for slot in slots},
            **common,
            **tables,
            **(published.segments(len(spec), max_workers) if live else {}),
        },
        alternatives=[
            {name: place for name, place in own.items() if name not in common} for own in needs
        ],
    )


def _own_segments(
    strategy: Strategy, optimizer: Optimizer, common: Set[str], n_params: int
) -> dict[str, tuple[str, int]]:
    """What a strategy and its optimizer need beside the state that is common to all of them."""
    private = [name for name in optimizer.state_segments if name not in common]
    shared = [name for name in optimizer.shared_segments if name not in common]
    of_slots = [f"{name}.{slot}" for name in private for slot in range(1, strategy.slots + 1)]
    return {
        **dict.fromkeys((*of_slots, *shared), ("float32", PARAMETER_COPY)),
        **strategy.segments(n_params),
    }


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker needs to begin; picklable for `spawn`.

    Attributes:
        setup: what all workers of the run have in common.
        handle: the arena.
        slot: the worker's slot in the worker table, from 1.
        budget: how long to train.
        step_limit: the budget in steps, where it limits them.
        run_dir: for logs.
        halvings: how often its work at a time has been halved, see `worker.py`.
        alternatives: where the strategy is still to be chosen, this job under each that it may be.
    """

    setup: Setup
    handle: ArenaHandle
    slot: int
    budget: Budget
    step_limit: int | None
    run_dir: Path
    halvings: int = 0
    alternatives: tuple[Job, ...] = ()

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.setup.config

    def chosen(self, counters: Counters) -> Job | None:
        """The job under the strategy of the run; None where that is still to be chosen."""
        if not self.alternatives:
            return self
        place = counters.load("strategy")
        return self.alternatives[place - 1] if place else None

    @property
    def spec(self) -> WorkerSpec:
        """Backend and threads."""
        return self.setup.workers[self.slot - 1]

    @property
    def kernels(self) -> str:
        """The form of the model's operations that it uses; never "auto"."""
        return self.setup.kernels[self.slot - 1]

    @property
    def engine(self) -> str | None:
        """The Metal engine through which it adds its steps; None adds them by native code."""
        return self.setup.writers.engine(self.spec.backend)

    @property
    def micro_batch(self) -> int:
        """Sequences in one gradient of its backend."""
        return max(1, self.config.batch_size >> self.halvings)

    @property
    def gpu_share(self) -> GPUShare:
        """Its part of the GPU, where it has one."""
        share = self.setup.gpu_share
        return replace(share, piece_tokens=max(1, share.piece_tokens >> self.halvings))
