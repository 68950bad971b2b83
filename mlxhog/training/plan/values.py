"""The values of a plan: what a run is.

Kinds of training differ by functions that the worker calls. So each process maps the token file, or
draws the rows of a task, for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from mlxhog import arena
from mlxhog.arena import Layout, control, published
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base.quantities import format_count
from mlxhog.base.workers import WorkerSpec
from mlxhog.checkpoint.base_model import BaseModel
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.models.families import ModelConfig
from mlxhog.models.sampled_softmax import SampledSoftmax
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import Optimizer
from mlxhog.optim.schedules import Rate
from mlxhog.progress import is_emulated
from mlxhog.strategies import Strategy
from mlxhog.training.plan.kernel_choice import Writers
from mlxhog.training.plan.memory import WORKER_BASE_BYTES, Memory

if TYPE_CHECKING:  # a worker loads few of them
    from mlxhog.cluster.sidecar import SidecarJob
    from mlxhog.data.batches import Growth
    from mlxhog.data.clients import Division
    from mlxhog.data.prepare import Prepared
    from mlxhog.training.plan.initial_weights import BigramWeights, InitialWeights
    from mlxhog.training.plan.resume import Resumption
    from mlxhog.training.plan.validation_subset import ValidationSubset, ValidationText


class BatchSource(Protocol):
    """The training batches of every epoch, by ticket; the same in every process."""

    @property
    def n_tickets(self) -> int:
        """Tickets per epoch."""

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket."""

    def example(self) -> Batch:
        """Return a batch of the usual shape, for warmup."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has passed every check. Each kind of training adds what its supervisor reads.

    A worker gets the fields of this class: of a larger plan no others are pickled.
    """

    config: TrainConfig  # resolved
    strategy: Strategy
    budget: Budget  # of this call, with the steps, tokens and seconds of the run before it
    model: ModelConfig
    workers: tuple[WorkerSpec, ...]  # those that have joined included; worker k has slot k + 1
    writers: Writers
    kernels: tuple[str, ...]  # kernel variant of each worker; never "auto"
    notes: tuple[str, ...]  # for the user, on these choices
    layout: Layout
    decay: frozenset[str]  # parameters that weight decay applies to
    gpu_share: GPUShare  # for each worker that uses the GPU
    batches: Callable[[], BatchSource]  # opens the training batches
    schedule: Callable[[float], Rate]  # of learning rates, by the share of the run that is one step
    sampled: SampledSoftmax | None = None  # None for the full softmax
    base: BaseModel | None = None  # beside an adapter
    validation_text: ValidationText | None = None  # for background tasks; None: there are none
    sidecar: SidecarJob | None = None  # of the run's cluster; the supervisor starts it

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Pickle what workers need: no corpus, no open checkpoint."""
        return partial(Plan, **{one.name: getattr(self, one.name) for one in fields(Plan)}), ()

    def with_worker(self, slot: int, spec: WorkerSpec, kernels: str) -> Self:
        """Return this with another worker in a slot: an existing slot or the next one."""
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
    *,
    max_workers: int | None = None,
    kept: Mapping[str, tuple[str, int]] | None = None,
    live: bool = False,
) -> Layout:
    """Lay out the arena of a run.

    It has `n_tickets` batches per epoch, `max_workers` slots or those of the strategy, further
    `kept` segments, as `arena.plan` takes them, and with `live` snapshots for readers.
    """
    most = max_workers or strategy.slots
    return arena.plan(
        spec,
        max_workers=most,
        slots=strategy.slots,
        private=optimizer.state_segments,
        state=optimizer.state_shapes({name: one.shape for name, one in spec.items()}),
        shared=optimizer.shared_segments,
        n_tickets=n_tickets,
        kept={
            **{f"ring.{k}": ("uint8", control.RING_BYTES) for k in range(1, most + 1)},
            **(kept or {}),
            **(published.segments(most) if live else {}),
        },
        extra=strategy.segments(spec),
    )


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What of a plan depends on the strategy; a run that may change it has two."""

    config: TrainConfig  # resolved
    stored: TrainConfig  # for the run's folder; options that a resume decides again are open
    automatic: tuple[str, ...]  # options that `for_model` decided, in this call or the first
    notes: tuple[str, ...]  # for the user
    strategy: Strategy
    optimizer: Optimizer
    batches: Callable[[], BatchSource]
    n_tickets: int  # of an epoch, in the layout
    grown: tuple[Growth, ...]  # of the training text, in this epoch
    division: Division | None  # of the text among clients; None if all workers share one text
    epoch_tokens: int  # in one epoch of the training text
    mean_tokens_per_step: float  # in one update, on average over a budget in steps
    budget: Budget
    schedule: Callable[[float], Rate]


@dataclass(frozen=True, kw_only=True)
class TextPlan(Regime, Plan):
    """A run of a language model that has passed every check."""

    resumption: Resumption | None  # None for a new run
    initial_weights: InitialWeights | BigramWeights | None  # None draws initial values
    data: Prepared
    validation: ValidationSubset  # that evaluations score
    parameters: int  # of the model
    trained_parameters: int  # of them: all, or those of an adapter
    memory: Memory
    recompute_from: str = "asked for"  # why `config.recompute` is what it is
    batch: BatchChoice | None = None  # of `--batch-size auto`
    other: TextPlan | None = None  # with the strategy that the run may change to

    def changed(self) -> TextPlan:
        """Return the other plan, with this as its own other."""
        assert self.other is not None, "the strategy stays"
        return replace(self.other, other=replace(self, other=None))

    def with_base(self, base: BaseModel) -> TextPlan:
        """Return the plan, and its other one, with the base at another place."""
        other = None if self.other is None else replace(self.other, base=base)
        return replace(self, base=base, other=other)

    @property
    def _regimes(self) -> list[TextPlan]:
        return [self] if self.other is None else [self, self.other]

    @property
    def arena_bytes(self) -> int:
        """Shared memory."""
        return max(one.layout.total_bytes for one in self._regimes)

    @property
    def checkpoint_bytes(self) -> int:
        """Estimate of the size of a checkpoint."""
        private = self.strategy.workers * [f"{name}.1" for name in self.optimizer.state_segments]
        shared = (*self.optimizer.shared_segments, *self.strategy.kept_segments())
        parts = [self.layout.parts(name) for name in ("params", *private, *shared)]
        return 4 * sum(slot.size for part in parts for slot in part.values())

    @property
    def worker_bytes(self) -> int:
        """Estimate of the private memory of one worker: a gradient, and the process itself."""
        return WORKER_BASE_BYTES + self.memory.of_batch(self.config.micro_batch)

    @property
    def free_slots(self) -> int:
        """Number of workers that can join."""
        return max(
            0 if one.strategy.fixed else one.layout.max_workers - one.strategy.workers
            for one in self._regimes
        )

    @property
    def emulated(self) -> bool:
        """Whether Metal source runs on the CPU, now or before a resume."""
        return is_emulated(self.writers.gpu_write, self.kernels_used) or self.emulated_before

    @property
    def emulated_before(self) -> bool:
        """Whether earlier steps of a resumed run were emulated."""
        return self.resumption is not None and bool(self.resumption.state["emulated"])

    @property
    def kernels_used(self) -> str:
        """The distinct kernel variants of the workers."""
        return ",".join(dict.fromkeys(self.kernels))


def epochs_read(
    budget: Budget, *, epoch_tokens: int, tokens_per_step: float, tokens_per_s: float | None = None
) -> float | None:
    """Return how many times a budget reads the text; None if that depends on an unknown speed."""
    rates = (budget.steps, tokens_per_step), (budget.tokens, 1), (budget.seconds, tokens_per_s)
    tokens = [limit * rate for limit, rate in rates if limit is not None and rate is not None]
    return min(tokens) / epoch_tokens if tokens else None


class BatchSpeed(NamedTuple):
    """The throughput of a run's workers, all at the same time, with one batch size."""

    sequences: int
    tokens_per_s: float  # of all workers together, gradients alone
    gradient_s: float  # of the slowest one


@dataclass(frozen=True)
class BatchChoice:
    """The chosen batch size, why none is larger, and the throughput of all measured ones."""

    sequences: int
    why: str
    speeds: tuple[BatchSpeed, ...] = ()

    def __str__(self) -> str:
        """One line for the user."""
        line = f"batch_size auto: {sequences_text(self.sequences)}, because {self.why}"
        each = [f"{format_count(one.tokens_per_s)} with {one.sequences}" for one in self.speeds]
        return f"{line}; tokens/s of all workers: {', '.join(each)}" if each else line

    def to_json(self) -> dict[str, Any]:
        """The choice for run.json."""
        speeds = [speed._asdict() for speed in self.speeds]
        return {"sequences": self.sequences, "why": self.why, "tokens_per_s": speeds}


def sequences_text(n: int) -> str:
    """Return a number of sequences as text."""
    return f"{n} sequence{'s' * (n != 1)}"
