"""Synchronous rounds that do not wait for the slowest (Chen et al. 2016, arXiv:1604.00981).

All n workers compute a gradient of the round. When n - b have written theirs, b being
`--backup-workers`, the round is closed: these workers apply the mean of their gradients, and later
gradients are dropped. The text of those is skipped, so text that takes long to compute counts
less: the result is biased if such text differs from the rest.

The rounds are those of `sync.py`, with its stages and segments, and a word for the members of a
round: the first worker that sees enough gradients sets it, once. A worker that was too late marks
its tickets of all missed rounds as done, and continues with the newest round. The lowest rank of
the last round decides on the next one.

    segment       dtype  meaning
    sync.*        those of `sync.py`
    quorum.words  uint8  word 0: (R + 1) 2^24 + a bit for each rank that takes part in round R
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.backends.backend import Grads
from mlxhog.config.strategies import Sync as SyncChoice
from mlxhog.errors import ConfigError
from mlxhog.strategies import division
from mlxhog.strategies.context import Context, Idle, Lease, WriteResult
from mlxhog.strategies.control_words import LINE, Words
from mlxhog.strategies.sync import GO, STOP, Sync, SyncWorker

QUORUM = "quorum.words"
MOST_WORKERS = 24


def check(backups: int, workers: int) -> None:
    """Refuse a number of backup workers that leaves none to wait for.

    Raises:
        ConfigError: none is left, or there are more workers than the quorum's word has bits.
    """
    if backups >= workers:
        raise ConfigError(
            f"backup_workers is {backups}, and the run has {workers} "
            f"worker{'s' * (workers > 1)}: a round waits for at least one; take at most "
            f"{workers - 1}, or more --workers"
        )
    if workers > MOST_WORKERS:
        raise ConfigError(
            f"backup_workers is for up to {MOST_WORKERS} workers, and the run has {workers}; "
            "leave it out, or take fewer"
        )


class SyncWithBackups(Sync):
    """Averaged gradients of the first workers to write theirs."""

    choice: SyncChoice

    numbered: ClassVar[bool] = True

    def batches_per_step(self) -> int:
        """Those that a round waits for."""
        return self.workers - self.choice.backup_workers

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {**super().segments(n_params), QUORUM: ("uint8", LINE)}

    def worker(self, context: Context) -> QuorumWorker:
        """Prepare one worker."""
        return QuorumWorker(context)

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Rounds that all of their members have ended."""
        words = Words(arena.segment("sync.words"))
        closed, ranks = members(arena)
        ended = all(words.load(2 + 2 * rank, 0) >= 3 * closed for rank in ranks)
        return closed if ended else closed - 1

    def between_steps(self, arena: Arena) -> bool:
        """Whether no round is under way."""
        decided, code = divmod(Words(arena.segment("sync.words")).load(0, 0), 4)
        return code != GO or decided <= self.steps_done(arena, Ledger(arena))

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """Skip the rounds that a worker missed, as it would itself.

        It evaluates, or is dead. A resumed run would else begin with those tickets, and read again
        all text that others have read since.
        """
        words = Words(arena.segment("sync.words"))
        closed, ranks = members(arena)
        for rank in range(self.workers):
            if _missed(rank, words.load(2 + 2 * rank, 0), closed, ranks):
                pass_over(arena, ledger, rank, self.workers, closed)
        super().settle(arena, ledger)


def _missed(rank: int, stages: int, closed: int, ranks: Sequence[int]) -> bool:
    """Whether a rank was too late for a closed round.

    Args:
        rank: of a worker.
        stages: number of stages that it has ended.
        closed: number of closed rounds.
        ranks: members of the last closed round.
    """
    return closed > stages // 3 and not (closed == stages // 3 + 1 and rank in ranks)


def pass_over(arena: Arena, ledger: Ledger, rank: int, workers: int, closed: int) -> None:
    """Mark a rank's tickets of missed rounds as done, and the rank as ready for the next round.

    Concurrency: the worker calls it, or another process while the worker holds still or is dead.
    """
    words, first = Words(arena.segment("sync.words")), arena.counters.load("first_ticket")
    owner = arena.workers.entry(rank + 1).incarnation
    for round_ in range(words.load(2 + 2 * rank, 0) // 3, closed):
        epoch, ticket = ledger.locate(first + round_ * workers + rank)
        ledger.claim_exact(epoch, ticket, owner)
        ledger.begin_apply(epoch, ticket, owner)
        ledger.finish(epoch, ticket, owner)
    words.store(2 + 2 * rank, 0, 3 * closed)


def members(arena: Arena) -> tuple[int, list[int]]:
    """Number of closed rounds, and the ranks in the last of them."""
    closed, mask = divmod(_native.load_u64(arena.segment(QUORUM), 0), 1 << MOST_WORKERS)
    return closed, [rank for rank in range(MOST_WORKERS) if mask >> rank & 1]


class QuorumWorker(SyncWorker):
    """One worker's part of the rounds that it is in time for."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        super().__init__(context)
        self._ranks = range(context.workers)
        self._needed = context.strategy.batches_per_step()
        self._counts = False

    def counts_step(self) -> bool:
        """A round is one step, counted by the lowest rank that takes part."""
        return self._counts

    def claim(self) -> Lease | Idle:
        """Lease this rank's ticket of the newest round, unless that is closed."""
        context = self.context
        stages = self._stages(context.rank)
        decided, code = divmod(self._words.load(0, 0), 4)
        closed, ranks = members(context.arena)
        if _missed(context.rank, stages, closed, ranks):
            # While a checkpoint is saved, `settle` does it. No round lacks this worker: the members
            # of the last one are enough to close the next.
            if not context.paused():
                self._pass_over(closed)
            return Idle.WAIT
        round_, stage = divmod(stages, 3)
        if stage == 0 and (decided <= round_ or code == STOP):
            code = self._decide(round_)
            if code != GO:
                return Idle.DONE if code == STOP else Idle.WAIT
        first = context.arena.counters.load("first_ticket") + round_ * context.workers
        epoch, ticket = divmod(first + context.rank, context.ledger.n)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and context.ledger.state(epoch, ticket) != TicketState.DONE:
            return Idle.WAIT  # not one that its predecessor applied
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def _pass_over(self, closed: int) -> None:
        """Skip the rounds that this rank missed; see `pass_over`."""
        context = self.context
        pass_over(context.arena, context.ledger, context.rank, context.workers, closed)
        context.entry.ticket = -1

    def _decide(self, round_: int) -> int:
        """The decision on the next round: the lowest rank of the last one makes it; 0 if open."""
        context = self.context
        _, ranks = members(context.arena)
        self._ranks = ranks or range(context.workers)
        return self._decision(round_)

    def _progress(self, round_: int) -> float:
        """As `Context.progress`, from all tokens: the members differ from round to round."""
        context = self.context
        tokens = context.arena.counters.load("tokens")
        return context.budget.progress(steps=round_, tokens=tokens, seconds=context.seconds())

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Take part in the round with this gradient, or drop it if the round is closed."""
        context = self.context
        start = self._stages(context.rank)
        round_ = start // 3
        if start == 3 * round_ and members(context.arena)[0] <= round_:
            self._write_own(grads)
            self._words.store(self._line + 1, 0, samples)
            self._finish_stage(start)
        ranks = self._wait_for_quorum(round_)
        self._counts = False
        if context.rank not in ranks:
            self._pass_over(members(context.arena)[0])
            version = context.arena.counters.load("version")
            return WriteResult(applied=False, version=version, too_late=True)
        self._ranks = ranks
        shares = division.parameters(self._costs, len(ranks))
        self._share = shares[ranks.index(context.rank)]
        self._counts = context.rank == ranks[0]
        return self._end_round(lease, start)

    def _wait_for_quorum(self, round_: int) -> list[int]:
        """Wait until the round is closed, or close it; its ranks, none if a later one is closed."""
        context, words = self.context, self.context.arena.segment(QUORUM)
        entry, began_ns, nap_s = context.entry, monotonic_ns(), 0.0
        while True:
            word = _native.load_u64(words, 0)
            closed, ranks = members(context.arena)
            if closed > round_:
                entry.wait_ns += monotonic_ns() - began_ns
                return ranks if closed == round_ + 1 else []
            arrived = [r for r in range(context.workers) if self._stages(r) == 3 * round_ + 1]
            if len(arrived) >= self._needed:
                mask = sum(1 << rank for rank in arrived)
                _native.cas_u64(words, 0, word, (round_ + 1) << MOST_WORKERS | mask)
                continue
            entry.beat()
            time.sleep(nap_s)
            nap_s = min(1e-3, nap_s + 2e-5)
