"""The engine of rounds: steps on numbered tickets, and collectives of stages with barriers.

Step s of worker p, both from 0, is the strategy's step s P + p, which has the ticket of that
number. It is applied once, even if workers die: a worker first stores all counts after the step in
its journal; then the ledger marks the ticket, the update is applied, and the ledger marks the
ticket done. So a replacement knows whether it was applied, and stores the counts from the journal:
twice is the same as once.

In a collective all workers do three stages, each its own part, with a barrier after every stage:
every worker counts the stages that it has ended. Doing a part again is harmless, so the replacement
of a dead worker continues at that count; no ticket is lost, and none is counted twice.

    strategy          a worker's step                  stages of a collective
    sync              the last stage, on its share     put, average, apply; of every step
    local methods     on its replica                   reduce, commit, broadcast; after some steps
    round_robin, sim  updates the parameters in turn   none

The words of such a strategy, beside those of its own file:

    first         number of the step that has the first ticket of this call
    steps_before  steps of all workers before this call
    steps         of each worker, over resumes; sync counts stages only
    stages        of collectives that a worker has ended
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


STAGES: Final = 3  # of a collective
NEVER: Final = 1 << 62  # no limit of steps


class StepRecord(NamedTuple):
    """Counts after a step of a worker."""

    opt_step: int  # updates by its optimizer
    version: int  # updates of the run, or those of a worker on its copy
    tokens: int  # of this call, or of this worker
    applied: bool  # else its gradient was not finite, or too stale
    steps: int  # of this worker; 0 before the first record


JOURNAL: Final = tuple(f"{name}_after" for name in StepRecord._fields)


def last_record(words: Words, rank: int) -> StepRecord:
    """Return the last record in a worker's journal, perhaps a predecessor's."""
    opt_step, version, tokens, applied, steps = (words[name, rank] for name in JOURNAL)
    return StepRecord(opt_step, version, tokens, bool(applied), steps)


def is_done(ledger: Ledger, ticket: int) -> bool:
    """Return whether a ticket is done, counted from the start of training."""
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
        """Return the ticket of a worker's next step, counted from the start of training."""
        number = self.steps(words, rank) * self.workers + rank
        return arena.counters.load("first_ticket") + number - words["first"]

    def store_counts(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        """Store the counts after a worker's step."""
        arena.workers.entry(rank + 1).opt_step = record.opt_step
        words["steps", rank] = record.steps

    def run_stage(self, words: Words, rank: int, stage: int, part: Callable[[], None]) -> None:
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
        """Count the steps that dead workers have applied but not counted."""
        words = self.words(arena)
        for rank in range(self.workers):
            record, is_next = last_record(words, rank), self.steps(words, rank) + 1
            if record.steps == is_next and is_done(ledger, self.ticket(arena, words, rank)):
                self.store_counts(arena, words, rank, record)
        super().settle(arena, ledger)


class NumberedWorker(StrategyWorker):
    """One worker's steps on numbered tickets."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._words: Words = self.strategy.words(context.arena)
        self._leased = False

    @property
    def _limit(self) -> int:
        """Limit of the steps of all workers in this call; it may change between two steps."""
        limit = self.context.step_limit
        return NEVER if limit is None else limit

    def lease(self) -> Lease | Idle:
        """Lease the ticket of the next step, also if its update is applied already.

        `WAIT` if another owner has it, or it is a whole ring of tickets ahead of the oldest.
        """
        context, strategy = self.context, self.strategy
        number = strategy.ticket(context.arena, self._words, context.rank)
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and not is_done(context.ledger, number):
            return Idle.WAIT
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def apply_once(
        self, lease: Lease, counts: tuple[int, int, int, bool], apply: Callable[[StepRecord], None]
    ) -> StepRecord:
        """Apply a step, unless a predecessor has, and store its counts.

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
        self.strategy.store_counts(context.arena, words, rank, record)
        context.entry.ticket = -1
        return record

    def run_stages(
        self, first: int, parts: Iterable[Callable[[], None]], ranks: Iterable[int] | None = None
    ) -> None:
        """Run the stages from `first` on, as far as this worker has not, with a barrier after each.

        `ranks` are the members; None is every worker.
        """
        for stage, part in enumerate(parts, start=first):
            self.strategy.run_stage(self._words, self.context.rank, stage, part)
            self.context.wait_until(partial(self._have_ended, stage, ranks))

    def _have_ended(self, stage: int, ranks: Iterable[int] | None) -> bool:
        slowest: int = min(self.strategy.each(self._words, "stages", ranks))
        return slowest > stage
