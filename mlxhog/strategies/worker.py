"""One worker of a strategy, its batch, and the result of a write.

A `StrategyWorker` takes a lease (of a batch), fills the backend's inbox, and writes the gradient's
step. It works on a `Context` (`context.py`), the same for all strategies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxhog.optim.gradients import Grads
    from mlxhog.strategies.context import Context


class Idle(Enum):
    """Why there is no lease."""

    WAIT = "nothing to do now, ask again"
    DONE = "the budget is used up, or the run is stopping"


@dataclass(frozen=True)
class TicketPart:
    """Sequences `begin` to `end - 1` of a ticket's batch, as far as the batch has them."""

    epoch: int
    ticket: int
    begin: int
    end: int


@dataclass(frozen=True)
class Lease:
    """A batch this worker holds until it is applied or given back.

    Attributes:
        epoch: of the ticket.
        ticket: held in the ledger.
        parts: the sequences to compute, perhaps of other tickets, perhaps none; None is the
            ticket's own batch.
    """

    epoch: int
    ticket: int
    parts: tuple[TicketPart, ...] | None = None


@dataclass(frozen=True)
class WriteResult:
    """Result of writing one gradient.

    Attributes:
        applied: whether it has changed the parameters.
        staleness: updates between its read and its write.
        version: updates of the run, this one included.
        too_late: whether it was finite and left out for its staleness.
    """

    applied: bool
    staleness: int = 0
    version: int = 0
    too_late: bool = False


class StrategyWorker(ABC):
    """One worker's part of a strategy.

    Attributes:
        context: the worker's view of the run.
        strategy: of the run, with its numbers.
    """

    def __init__(self, context: Context) -> None:
        """Prepare it, in its process."""
        self.context = context
        self.strategy: Any = context.strategy

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
