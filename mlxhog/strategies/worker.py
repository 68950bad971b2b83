"""One worker's part of a strategy: it claims a batch, reads parameters, and writes the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """A batch this worker holds until it is applied or given back."""

    epoch: int  # of the ticket
    ticket: int  # held in the ledger
    parts: tuple[TicketPart, ...] | None = None  # perhaps of other tickets; None is the batch


class WriteResult(NamedTuple):
    """Result of writing one gradient."""

    applied: bool  # whether it has changed the parameters
    staleness: int = 0  # updates between its read and its write
    version: int = 0  # updates of the run, this one included
    too_late: bool = False  # whether it was finite and left out for its staleness


class StrategyWorker(ABC):
    """One worker's part of a strategy, in its process."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.strategy: Any = context.strategy  # has the numbers

    @abstractmethod
    def claim(self) -> Lease | Idle:
        """Take the next batch. `Idle.DONE` once no more will come in this training phase."""

    @abstractmethod
    def read(self) -> None:
        """Make the parameters this gradient is evaluated at visible to the backend."""

    @abstractmethod
    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Apply the mean gradient of `samples` sequences, or drop it if it is not finite.

        Without a sequence `grads` is empty. Ends the lease.
        """

    def counts_step(self) -> bool:
        """Whether the batch just written counts as a step: one of P averaged ones does."""
        return True

    def begin_apply(self, lease: Lease) -> None:
        """Begin to write the update of a lease; if the worker dies from here on, it is torn."""
        from mlxhog.arena.workers import WorkerPhase

        self.context.entry.phase = WorkerPhase.APPLY
        self.context.ledger.begin_apply(lease.epoch, lease.ticket, self.context.owner)

    def finish(self, lease: Lease) -> None:
        """End a lease whose update is written."""
        self.context.ledger.finish(lease.epoch, lease.ticket, self.context.owner)
