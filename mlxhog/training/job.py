"""What a worker is given when it is spawned.

What differs between kinds of training comes as functions that the worker calls: a token file is
mapped, and rows of a task are drawn, in the process that needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlxhog.arena import ArenaHandle
from mlxhog.arena.records import Ring
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.models.families import ModelConfig
from mlxhog.models.sampled_head import SampledHead
from mlxhog.optim.schedules import Schedule
from mlxhog.strategies import Context


class Batches(Protocol):
    """The training batches of every epoch, by ticket; the same in every process."""

    @property
    def n_tickets(self) -> int:
        """Tickets per epoch."""

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket."""


class SideJobs(Protocol):
    """What a worker does beside its steps."""

    def serve(self) -> None:
        """Do what the supervisor asks for, if no other worker has taken it on."""

    def evaluate_rest(self) -> None:
        """Do this worker's part of the evaluation at the end of a run."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to begin; picklable for `spawn`.

    Attributes:
        handle: the arena.
        slot: the worker's slot in the worker table, from 1.
        owner: the incarnation under which it takes tickets.
        workers: number of workers in the run.
        backend: such as "torch:cpu".
        threads: CPU threads it may use.
        write: the arena's write mode.
        kernels: form of the model's operations that it uses; never "auto".
        engine: the Metal engine through which it adds its steps; None adds them by native code.
        micro_batch: sequences in one gradient of its backend.
        share: of the GPU, where it has one.
        config: the run's configuration.
        model: the architecture.
        decay: names of the parameters that weight decay applies to.
        batches: opens what is trained on.
        schedule: makes the step sizes.
        side_jobs: opens what is done beside the steps.
        budget: how long to train.
        step_limit: the budget in steps, where it limits them.
        run_dir: for logs.
        sampled: words of the training loss; None is the whole vocabulary.
    """

    handle: ArenaHandle
    slot: int
    owner: int
    workers: int
    backend: str
    threads: int
    write: str
    kernels: str
    engine: str | None
    micro_batch: int
    share: GPUShare
    config: TrainConfig
    model: ModelConfig
    decay: frozenset[str]
    batches: Callable[[], Batches]
    schedule: Callable[[], Schedule]
    side_jobs: Callable[[Job, Context, Ring], SideJobs]
    budget: Budget
    step_limit: int | None
    run_dir: Path
    sampled: SampledHead | None = None
