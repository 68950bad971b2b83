"""The engine of rounds: steps on numbered tickets, and meetings whose stages all end together.

Each numbered step is applied once, even if workers die. Before a worker writes parameters it stores
in its journal all counts after the step. Then the ledger marks the ticket, the step is applied, and
the ledger marks its end. So a replacement knows that the step of a ticket that is done was applied,
and takes in the counts. They are stored, never added: twice is the same as once.

In a meeting workers do the same stages, each its own part. A stage begins when every worker has
ended the one before, by a count of its own. Doing a part again is harmless, so the replacement of a
dead worker continues at the count that it finds; no ticket is lost, and none is counted twice.

    strategy              a worker's step                    stages of a meeting
    sync                  puts its gradient into a segment   average, apply; after each step
    local_sgd, fedprox    an optimizer step on its copy      average, take the average
    scaffold, diloco      the same                           control variates; an outer step, too
    avg_runs              the same                           none
    round_robin, sim      adds its step in its turn          none

    segment       dtype  meaning
    rounds.words  uint8  the words of the strategy, and a journal of each worker
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from mlxhog.strategies.strategy import Segments, Strategy, parameter_copies
from mlxhog.strategies.worker import Lease, StrategyWorker

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.ledger import Ledger
    from mlxhog.arena.words import Table, Words
    from mlxhog.strategies.context import Context

WORDS: Final = "rounds.words"
JOURNAL: Final = "opt_step_after version_after tokens_after applied_after ticket_after"


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
    """The last record of a worker's journal, perhaps a predecessor's."""
    opt_step, version, tokens, applied, ticket = (words[name, row] for name in JOURNAL.split())
    return StepRecord(opt_step, version, tokens, bool(applied), ticket - 1)


class Numbered(Strategy):
    """A strategy whose batches are assigned by number."""

    numbered: ClassVar[bool] = True

    def groups(self) -> dict[str, tuple[int, str]]:
        """The groups of its words, as `Table` takes them; the journals are one more."""
        return {}

    @cached_property
    def table(self) -> Table:
        """The table of its words."""
        from mlxhog.arena.words import Table

        return Table(**self.groups(), journal=(self.workers, JOURNAL))

    def words(self, arena: Arena) -> Words:
        """Its words in an arena."""
        return self.table.open(arena.segment(WORDS))

    def each(self, words: Words, name: str, ranks: Iterable[int] | None = None) -> list[int]:
        """A word of every worker, or of some."""
        return [words[name, rank] for rank in (range(self.workers) if ranks is None else ranks)]

    def segments(self, n_params: int) -> Segments:
        """The words, and the copies of the parameters that a checkpoint keeps."""
        return {**parameter_copies(self.kept_segments()), WORDS: ("uint8", self.table.n_bytes)}

    def take_part(self, words: Words, rank: int, stage: int, part: Callable[[], None]) -> None:
        """Do a rank's part of a stage, unless it is done."""
        if words["stages", rank] == stage:
            part()
            words["stages", rank] = stage + 1

    def unfinished(self, words: Words, rank: int, ledger: Ledger, number: int) -> StepRecord | None:
        """The record of a ticket's step that a dead worker has applied and not counted."""
        from mlxhog.arena.ledger import TicketState

        record = last_record(words, rank)
        done = ledger.state(*ledger.locate(number)) == TicketState.DONE
        return record if record.ticket == number and done else None


class NumberedWorker(StrategyWorker):
    """One worker's steps on numbered tickets."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._words: Words = self.strategy.words(context.arena)
        self._leased = False

    def lease(self, number: int) -> Lease | None:
        """Lease a ticket, or take over one whose step is applied.

        None if another owner has it, or it is a whole ring of tickets ahead of the oldest.
        """
        context = self.context
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and not context.is_done(number):
            return None
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

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
        context, ledger = self.context, self.context.ledger
        if self._leased:
            record = StepRecord(*counts(), lease.epoch * ledger.n + lease.ticket)
            # Not atomic: a death amid these lines leaves the ticket leased, and it comes back.
            stored = record._replace(ticket=record.ticket + 1)
            for name, value in zip(JOURNAL.split(), stored, strict=True):
                self._words[name, context.rank] = int(value)
            context.begin_apply(lease)
            if record.applied:
                apply(record)
            context.finish(lease)
        return last_record(self._words, context.rank)

    def meet(
        self, first: int, parts: Iterable[Callable[[], None]], ranks: Iterable[int] | None = None
    ) -> None:
        """Take part in a meeting as far as this worker has not: each stage ends for all at once.

        Args:
            first: number of the first stage.
            parts: this worker's part of each stage.
            ranks: of the members; None is every worker.
        """
        for stage, part in enumerate(parts, start=first):
            self.strategy.take_part(self._words, self.context.rank, stage, part)
            self.context.wait_until(partial(self._have_ended, stage, ranks))

    def _have_ended(self, stage: int, ranks: Iterable[int] | None) -> bool:
        slowest: int = min(self.strategy.each(self._words, "stages", ranks))
        return slowest > stage
