"""The engine of rounds: steps on numbered tickets, and meetings whose stages all end together.

Step s of worker p, both from 0, is the strategy's step s P + p, which has the ticket of that
number. It is applied once, even if workers die: before a worker writes parameters, it stores in its
journal all counts after the step. Then the ledger marks the ticket, the step is applied, and the
ledger marks its end. So a replacement knows that the step of a ticket that is done was applied, and
takes in the counts. They are stored, never added: twice is the same as once.

In a meeting workers do the same three stages, each its own part. A stage begins when every worker
has ended the one before, by a count of its own. Doing a part again is harmless, so the replacement
of a dead worker continues at the count that it finds; no ticket is lost, and none is counted twice.

    strategy          a worker's step                 stages of a meeting
    sync              the last stage, on its share    put, average, apply; of every step
    local methods     on its copy                     mix, keep, take; after some steps
    round_robin, sim  adds to the parameters in turn  none

The words of such a strategy, beside those of its own file:

    first         number of the step that has the first ticket of this call
    steps_before  steps of all workers before this call
    steps         of each worker, over resumes; sync counts stages only
    stages        of meetings that a worker has ended
    *_after       the journal of each worker
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from mlxhog.strategies.strategy import Strategy
from mlxhog.strategies.worker import Idle, Lease, StrategyWorker

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.ledger import Ledger
    from mlxhog.arena.words import Words
    from mlxhog.strategies.context import Context


STAGES: Final = 3  # of a meeting
NEVER: Final = 1 << 62  # steps without an end


class StepRecord(NamedTuple):
    """Counts after a step of a worker."""

    opt_step: int  # steps that its optimizer has taken
    version: int  # updates of the run, or those of a worker on its copy
    tokens: int  # of this call, or of this worker
    applied: bool  # whether the step is applied; else its gradient was not finite, or too late
    steps: int  # of this worker; 0 before the first record


JOURNAL: Final = tuple(f"{name}_after" for name in StepRecord._fields)


def last_record(words: Words, rank: int) -> StepRecord:
    """The last record in a worker's journal, perhaps a predecessor's."""
    opt_step, version, tokens, applied, steps = (words[name, rank] for name in JOURNAL)
    return StepRecord(opt_step, version, tokens, bool(applied), steps)


def _is_done(ledger: Ledger, ticket: int) -> bool:
    from mlxhog.arena.ledger import TicketState

    return ledger.state(*ledger.locate(ticket)) == TicketState.DONE


class Numbered(Strategy):
    """A strategy whose steps have numbered tickets."""

    numbered: ClassVar[bool] = True
    run_words: ClassVar[str] = ""  # its own words of the run
    worker_words: ClassVar[str] = ""  # of each worker
    kept_words: ClassVar[tuple[str, ...]] = ("steps",)  # of these, in a checkpoint

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {
            "run": (1, f"first steps_before {self.run_words}"),
            "worker": (self.workers, " ".join(("steps stages", *JOURNAL, self.worker_words))),
        }

    def each(self, words: Words, name: str, ranks: Iterable[int] | None = None) -> list[int]:
        return [words[name, rank] for rank in (range(self.workers) if ranks is None else ranks)]

    # -- steps -----------------------------------------------------------------------------------

    def steps(self, words: Words, rank: int) -> int:
        return words["steps", rank]

    def ticket(self, arena: Arena, words: Words, rank: int) -> int:
        """Ticket of a worker's next step, counted from the beginning of training."""
        number = self.steps(words, rank) * self.workers + rank
        return arena.counters.load("first_ticket") + number - words["first"]

    def take_in(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        """Store the counts of a worker's step; doing it twice changes nothing."""
        arena.workers.entry(rank + 1).opt_step = record.opt_step
        words["steps", rank] = record.steps

    def take_part(self, words: Words, rank: int, stage: int, part: Callable[[], None]) -> None:
        if words["stages", rank] == stage:
            part()
            words["stages", rank] = stage + 1

    # -- for the rest of the run -----------------------------------------------------------------

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        words = self.words(arena)
        if position is not None:
            for name in self.kept_words:
                for rank, value in zip(range(self.workers), position[name], strict=True):
                    words[name, rank] = value
        steps = self.each(words, "steps")
        words["steps_before"] = sum(steps)
        words["first"] = min(n * self.workers + rank for rank, n in enumerate(steps))

    def position(self, arena: Arena) -> dict[str, Any] | None:
        return {name: self.each(self.words(arena), name) for name in self.kept_words} or None

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        words = self.words(arena)
        return sum(self.each(words, "steps")) - words["steps_before"]

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """Take in the steps that dead workers have applied and not counted."""
        words = self.words(arena)
        for rank in range(self.workers):
            record, is_next = last_record(words, rank), self.steps(words, rank) + 1
            if record.steps == is_next and _is_done(ledger, self.ticket(arena, words, rank)):
                self.take_in(arena, words, rank, record)
        super().settle(arena, ledger)


class NumberedWorker(StrategyWorker):
    """One worker's steps on numbered tickets."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._words: Words = self.strategy.words(context.arena)
        self._leased = False

    @property
    def _limit(self) -> int:
        """Steps of all workers in this call; it may change between two steps."""
        limit = self.context.step_limit
        return NEVER if limit is None else limit

    def lease(self) -> Lease | Idle:
        """Lease the ticket of the next step, or take it over if its step is applied.

        `WAIT` if another owner has it, or it is a whole ring of tickets ahead of the oldest.
        """
        context, strategy = self.context, self.strategy
        number = strategy.ticket(context.arena, self._words, context.rank)
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and not _is_done(context.ledger, number):
            return Idle.WAIT
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def once(
        self, lease: Lease, counts: tuple[int, int, int, bool], apply: Callable[[StepRecord], None]
    ) -> StepRecord:
        """Apply a step, unless a predecessor has, and take in its counts.

        `counts` are the first fields of `StepRecord` after the step, which `apply` writes.
        """
        context, words, rank = self.context, self._words, self.context.rank
        if self._leased:
            record = StepRecord(*counts, steps=self.strategy.steps(words, rank) + 1)
            # Not atomic: a death amid these lines leaves the ticket leased, and it comes back.
            for name, value in zip(JOURNAL, record, strict=True):
                words[name, rank] = int(value)
            self.begin_apply(lease)
            if record.applied:
                apply(record)
            self.finish(lease)
        record = last_record(words, rank)
        self.strategy.take_in(context.arena, words, rank, record)
        context.entry.ticket = -1
        return record

    def meet(
        self, first: int, parts: Iterable[Callable[[], None]], ranks: Iterable[int] | None = None
    ) -> None:
        """Take part in the stages from `first` on, as far as this worker has not.

        Each ends for all members at once, whose `ranks` are given; None is every worker.
        """
        for stage, part in enumerate(parts, start=first):
            self.strategy.take_part(self._words, self.context.rank, stage, part)
            self.context.wait_until(partial(self._have_ended, stage, ranks))

    def _have_ended(self, stage: int, ranks: Iterable[int] | None) -> bool:
        slowest: int = min(self.strategy.each(self._words, "stages", ranks))
        return slowest > stage
