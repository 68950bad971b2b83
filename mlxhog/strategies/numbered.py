"""Steps on tickets that a strategy assigns by number: each is applied once, whoever dies.

Before a worker writes parameters it stores in its journal all counts after the step. Then the
ledger marks the ticket, the step is applied, and the ledger marks its end. So a replacement knows
that the step of a ticket that is done was applied, and takes in the counts. They are stored, never
added: twice is the same as once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.words import Words
from mlxhog.arena.workers import Phase
from mlxhog.strategies.context import Context, Lease

JOURNAL = "opt_step_after version_after tokens_after applied_after ticket_after"
"""Words of a worker's journal, for a `Table`."""


class StepRecord(NamedTuple):
    """Counts after a step, and its ticket, counted from the beginning of training.

    Attributes:
        opt_step: steps that its optimizer has taken.
        version: updates of the run.
        tokens: of this call.
        applied: whether the step is applied; else its gradient was not finite, or too late.
        ticket: -1 before the first record.
    """

    opt_step: int
    version: int
    tokens: int
    applied: bool
    ticket: int


def last_record(words: Words, row: int) -> StepRecord:
    """The last record of a journal, perhaps a predecessor's."""
    opt_step, version, tokens, applied, ticket = (words[name, row] for name in JOURNAL.split())
    return StepRecord(opt_step, version, tokens, bool(applied), ticket - 1)


def unfinished(words: Words, row: int, ledger: Ledger, number: int) -> StepRecord | None:
    """The record of a ticket's step that a dead worker has applied and not counted, if it has."""
    record = last_record(words, row)
    done = ledger.state(*ledger.locate(number)) == TicketState.DONE
    return record if record.ticket == number and done else None


class NumberedSteps:
    """One worker's steps on such tickets."""

    def __init__(self, context: Context, words: Words, row: int) -> None:
        """Use a row of journals."""
        self._context, self._words, self._row = context, words, row
        self._leased = False

    def lease(self, number: int) -> Lease | None:
        """Lease a ticket, or take over one whose step is applied.

        None if another owner has it, or it is a whole ring of tickets ahead of the oldest.
        """
        context = self._context
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and context.ledger.state(epoch, ticket) != TicketState.DONE:
            return None
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    @property
    def is_over(self) -> bool:
        """Whether the ticket's step was applied before, by a worker that then died."""
        return not self._leased

    def once(
        self,
        lease: Lease,
        counts: Callable[[], tuple[int, int, int, bool]],
        apply: Callable[[StepRecord], None],
    ) -> StepRecord:
        """Apply a step, unless a predecessor has; returns the counts to take in.

        Args:
            lease: of its ticket.
            counts: the first fields of `StepRecord` after the step.
            apply: writes the step.
        """
        context, ledger = self._context, self._context.ledger
        if self._leased:
            record = StepRecord(*counts(), lease.epoch * ledger.n + lease.ticket)
            # Not atomic: a death amid these lines leaves the ticket leased, and it comes back.
            stored = record._replace(ticket=record.ticket + 1)
            for name, value in zip(JOURNAL.split(), stored, strict=True):
                self._words[name, self._row] = int(value)
            context.entry.phase = Phase.APPLY
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if record.applied:
                apply(record)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        return last_record(self._words, self._row)
