"""One worker's part of a strategy: it claims a batch, reads parameters, and writes the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from mlxhog.optim.gradients import Grads
    from mlxhog.strategies.context import Context


class Idle(Enum):
    """Why there is no lease."""

    WAIT = "nothing to do now, ask again"
    DONE = "the budget is used up, or the run is stopping"


class TicketPart(NamedTuple):
    """Sequences `begin` to `end - 1` of a ticket's batch, as far as the batch has them."""

    epoch: int
    ticket: int
    begin: int
    end: int


class Lease(NamedTuple):
    """A batch this worker holds until its update is applied or it is returned."""

    epoch: int  # of the ticket
    ticket: int  # held in the ledger
    parts: tuple[TicketPart, ...] | None = None  # perhaps of other tickets; None is the batch


class BatchSize(NamedTuple):
    """What a gradient was computed from."""

    sequences: int
    tokens: int  # inputs, without padding
    labels: int  # that its loss counts: its weight in the mean of several gradients


class WriteResult(NamedTuple):
    """Result of writing one gradient."""

    applied: bool  # whether it has changed the parameters
    staleness: int = 0  # updates between its read and its write
    version: int = 0  # updates of the run, this one included
    is_stale: bool = False  # whether it was finite and dropped for its staleness
    is_part: bool = False  # of a sum, of which another worker says whether it was applied


class StrategyWorker(ABC):
    """One worker's part of a strategy, in its process."""

    counts_tokens: ClassVar[bool] = True  # each worker its own; else the strategy counts them

    def __init__(self, context: Context) -> None:
        self.context = context
        self.strategy: Any = context.strategy  # with its hyperparameters

    @abstractmethod
    def claim(self) -> Lease | Idle:
        """Claim the next batch; `Idle.DONE` once no more will come in this phase."""

    @abstractmethod
    def read(self) -> None:
        """Copy the parameters of the next gradient to the backend."""

    @abstractmethod
    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        """Apply the mean gradient of a batch, unless it is not finite; end the lease.

        Without a sequence `grads` is empty.
        """

    def counts_step(self) -> bool:
        """Whether the batch just written counts as a step: one of P averaged ones does."""
        return True

    def begin_apply(self, lease: Lease) -> None:
        """Mark a lease as being applied: if the worker dies now, its batch is partially applied."""
        from mlxhog.arena.workers import WorkerPhase

        self.context.entry.phase = WorkerPhase.APPLY
        self.context.ledger.begin_apply(lease.epoch, lease.ticket, self.context.owner)

    def finish(self, lease: Lease) -> None:
        """Mark the batch of a lease as done."""
        self.context.ledger.finish(lease.epoch, lease.ticket, self.context.owner)
