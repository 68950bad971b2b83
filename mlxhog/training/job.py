"""The plan of a run, as its supervisor and all its workers have it, and the job of one worker.

Kinds of training differ by functions that the worker calls. So each process maps the token file, or
draws the rows of a task, for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from mlxhog import arena
from mlxhog.arena import ArenaHandle, Layout, control, published
from mlxhog.arena.control import Ring
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.words import Words
from mlxhog.backends.gpu_share import GPUShare, most_sequences
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.schedules import Rate
from mlxhog.data.batch import Batch
from mlxhog.models.families import ModelConfig
from mlxhog.models.sampled_head import SampledHead
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import Optimizer
from mlxhog.optim.tables import segments as means_of_tables
from mlxhog.strategies import Strategy
from mlxhog.strategies.context import Context
from mlxhog.training.kernel_choice import Writers

if TYPE_CHECKING:  # only runs of a cluster load it
    from mlxhog.cluster.link import LinkJob


class BatchSource(Protocol):
    """The training batches of every epoch, by ticket; the same in every process."""

    @property
    def n_tickets(self) -> int:
        """Tickets per epoch."""

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket."""

    def example(self) -> Batch:
        """Return a batch of the usual shape, for warm-up."""


class SideJobs(Protocol):
    """The side jobs of a worker, such as evaluations."""

    def serve(self) -> None:
        """Do a requested job if no other worker has taken it on."""

    def evaluate_rest(self) -> None:
        """Do this worker's part of the evaluation at the end of a run."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has passed every check. Each kind of training adds what its supervisor reads.

    A worker gets the fields of this class: of a larger plan no others are pickled.

    Attributes:
        config: the resolved options of the run.
        strategy: of the run.
        budget: of this call, with the steps, tokens and seconds of the run before it.
        model: the architecture.
        workers: backend and threads of each worker, those that have joined included; worker k has
            slot k + 1.
        writers: how their steps are added, and in which write mode.
        kernels: form of the model's operations of each worker; never "auto".
        notes: for the user, on these choices.
        layout: of the arena.
        decay: names of the parameters that weight decay applies to.
        gpu_share: share of the GPU for each worker that uses it.
        batches: opens the training batches.
        schedule: makes the schedule of step sizes, with the share of the run that is one step.
        side_jobs: opens the side jobs.
        sampled: words of the training loss; None for the whole vocabulary.
        link: of the run's cluster, which the supervisor starts; None without a cluster.
        other: the plan with the strategy that the run may change to, of the same layout; None if
            the strategy is named.
    """

    config: TrainConfig
    strategy: Strategy
    budget: Budget
    model: ModelConfig
    workers: tuple[WorkerSpec, ...]
    writers: Writers
    kernels: tuple[str, ...]
    notes: tuple[str, ...]
    layout: Layout
    decay: frozenset[str]
    gpu_share: GPUShare
    batches: Callable[[], BatchSource]
    schedule: Callable[[float], Rate]
    side_jobs: Callable[[Job, Context, Ring], SideJobs]
    sampled: SampledHead | None = None
    link: LinkJob | None = None
    other: Self | None = None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Pickle what workers need: no corpus, no open checkpoint."""
        return partial(Plan, **{one.name: getattr(self, one.name) for one in fields(Plan)}), ()

    def changed(self) -> Self:
        """The plan with the other strategy."""
        assert self.other is not None
        return replace(self.other, other=replace(self, other=None))

    def with_worker(self, slot: int, spec: WorkerSpec, kernels: str) -> Self:
        """This with another worker in a slot: an existing slot or the next one."""
        before, after = slice(slot - 1), slice(slot, None)
        return replace(
            self,
            workers=(*self.workers[before], spec, *self.workers[after]),
            kernels=(*self.kernels[before], kernels, *self.kernels[after]),
            other=None if self.other is None else self.other.with_worker(slot, spec, kernels),
        )


def plan_layout(
    spec: Mapping[str, ParamSpec],
    ways: Sequence[tuple[Strategy, Optimizer]],
    n_tickets: int,
    tables: Mapping[str, tuple[str, int]],
    *,
    live: bool = False,
) -> Layout:
    """Lay out the arena of a run.

    If the run may change its strategy, segments that only one of them needs (copies of gradients,
    private or shared moments) overlap those of the other. So the arena is as large as the largest
    strategy needs.

    Args:
        spec: the model's parameters.
        ways: the strategies of the run, each with its optimizer.
        n_tickets: batches per epoch.
        tables: further segments, such as a cluster's, as `arena.plan` takes them.
        live: whether to keep copies of the parameters for readers.
    """
    (strategy, optimizer), *_ = ways
    max_workers = max(one.slots for one, _ in ways)
    private = [m for m in optimizer.state_segments if all(m in r.state_segments for _, r in ways)]
    shared = [m for m in optimizer.shared_segments if all(m in r.shared_segments for _, r in ways)]
    needs = []
    for one, rule in ways:
        own = [f"{m}.{k}" for m in rule.state_segments for k in range(1, one.slots + 1)
               if m not in private]  # fmt: skip
        own += [m for m in rule.shared_segments if m not in shared]
        needs.append(dict.fromkeys(own, ("float32", PARAMETER_COPY)) | one.segments(len(spec)))
    common = {name: place for name, place in needs[0].items() if all(name in n for n in needs)}
    ngrams = strategy.tables
    return arena.plan(
        spec,
        tables=None if ngrams is None else ngrams.specs,
        max_workers=max_workers,
        private=private,
        state=optimizer.state_shapes({name: one.shape for name, one in spec.items()}),
        shared=shared,
        n_tickets=n_tickets,
        extra={
            **{f"ring.{k}": ("uint8", control.RING_BYTES) for k in range(1, max_workers + 1)},
            **common,
            **tables,
            **means_of_tables(0 if ngrams is None else len(ngrams.orders)),
            **(published.segments(max_workers) if live else {}),
        },
        alternatives=[
            {name: place for name, place in own.items() if name not in common} for own in needs
        ],
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """The plan of a run, and what one of its workers needs beside it; picklable for `spawn`.

    Attributes:
        plan: of the run, with its strategy when the job was made.
        handle: of the arena.
        slot: the worker's slot in the worker table, from 1.
        run_dir: folder for logs.
        changes: of the strategy before the job was made.
        halvings: how often its micro-batch has been halved, see `worker.py`.
    """

    plan: Plan
    handle: ArenaHandle
    slot: int
    run_dir: Path
    changes: int = 0
    halvings: int = 0

    def after(self, changes: int) -> Job:
        """The job with the strategy after a number of changes."""
        return replace(self, plan=self.plan.changed()) if (changes - self.changes) % 2 else self

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.plan.config

    @property
    def log(self) -> Path:
        """The file of the worker's output."""
        return self.run_dir / "logs" / f"worker-{self.slot}.log"

    @property
    def spec(self) -> WorkerSpec:
        """Backend and threads."""
        return self.plan.workers[self.slot - 1]

    @property
    def step_threads(self) -> int:
        """Threads of norm, step and read; a CPU worker has one of its own for overlapped steps."""
        return 1 if self._is_split else self.spec.threads

    @property
    def compute_threads(self) -> int:
        """Threads of its gradients."""
        return max(1, self.spec.threads - self._is_split)

    @property
    def _is_split(self) -> bool:
        return self.config.overlap and self.spec.backend not in GPU_BACKENDS

    @property
    def kernels(self) -> str:
        """The form of the model's operations that it uses; never "auto"."""
        return self.plan.kernels[self.slot - 1]

    @property
    def micro_batch(self) -> int:
        """Sequences per gradient of the backend."""
        most = most_sequences(self.spec.backend, self.config.seq_len)
        return max(1, min(self.config.micro_batch >> self.halvings, most))

    @property
    def gpu_share(self) -> GPUShare:
        """The worker's share of the GPU, if it uses one."""
        share = self.plan.gpu_share
        return replace(share, piece_tokens=max(1, share.piece_tokens >> self.halvings))


# -- limits, which change with the strategy ------------------------------------------------------


def store_limits(counters: Words, budget: Budget, steps: int | None) -> None:
    """Store the budget of the present strategy, and the steps that it may take, for workers."""
    for name, value in (("limit_steps", steps), ("budget_steps", budget.steps)):
        counters.set_real(name, math.inf if value is None else value)
    counters.set_real("steps_before", budget.progress_before)


def limits(counters: Words, budget: Budget) -> tuple[Budget, int | None]:
    """The stored budget, with the tokens and seconds of the plan's, and the stored steps."""
    limit, steps, before = (
        counters.real(name) for name in ("limit_steps", "budget_steps", "steps_before")
    )
    if steps != math.inf:
        budget = replace(budget, steps=int(steps), equal_steps_before=before)
    return budget, None if limit == math.inf else int(limit)
