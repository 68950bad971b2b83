"""Synchronous data parallelism: gradients averaged in shared memory (Dekel et al. 2012, 1012.1367).

One round is one update of P batches, in three stages (`rounds.py` has collectives):

    stage 3R     compute a gradient for ticket R P + rank, write it to this worker's segment
    stage 3R+1   average this worker's share of the parameters over all gradient segments, in rank
                 order; store the sum of squares of each parameter's mean
    stage 3R+2   add the squares up in parameter order (so the norm does not depend on P), apply the
                 optimizer to this worker's share

An update that a death interrupts is partially applied, and is not repeated. A round begins when
P - b workers are ready, so none waits within it for one that evaluates or restarts. One rank
decides on it, and publishes its learning rate: so all stop after the same round.

With `sync_shares=speed` the sequences of a round's P tickets are divided among the workers so that
all finish at about the same time (`division.py`). The division is published, too, so the
replacement of a dead worker computes the same sequences.

When P - b workers have written their gradients, the first that sees it closes the round: these are
its members, and the lowest of them decides on the next one. b is 0, or `backup_workers`: then a
round does not wait for the slowest (Chen et al. 2016, arXiv:1604.00981), and later gradients are
dropped, which biases the result against text that takes long to compute. A worker that was too late
marks its tickets of all missed rounds as done, and continues with the newest.

`mean.py` has the gradients, their mean, and its segments.

    word         meaning
    begun        rounds that were begun
    stopped      R + 1 if the run ends before round R
    done_before, tokens_before   steps and tokens that this call took with other strategies
    lr, version  of the round; the version before it
    members      (R + 1) 2^24 of the last closed round R, + a bit for each member; no bit is all
    weight       labels in a rank's batch, the weight of its gradient
    ready        1 + the round that a rank is ready to begin
    seconds, gradients, sequences   of a rank, see `division.py`
    tokens       of a rank, in the updates that it has applied
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mlxhog.config.components import Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.optim.gradients import Grads
from mlxhog.strategies import mean
from mlxhog.strategies.division import SharesBySpeed, SynchronousShares
from mlxhog.strategies.mean import MeanGradient
from mlxhog.strategies.rounds import STAGES, Numbered, NumberedWorker, StepRecord
from mlxhog.strategies.strategy import Segments
from mlxhog.strategies.worker import BatchSize, Idle, Lease, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter
    from mlxhog.arena.ledger import Ledger
    from mlxhog.arena.words import Words
    from mlxhog.strategies.context import Context

MAX_WORKERS: Final = 24  # with backup workers: bits of a set of ranks


class SyncWorker(NumberedWorker):
    """One worker's part of synchronous rounds."""

    counts_tokens = False  # `Sync.count_tokens` does

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        workers, each = context.workers, context.run.sequences_per_ticket
        self._mean = MeanGradient(context, workers)
        by_speed = self.strategy.shares == "speed"
        self._speeds = SharesBySpeed(self._words, workers, each) if by_speed else None
        self._began_ns = 0
        self._members: list[int] = []  # of the round whose step was written last

    def counts_step(self) -> bool:
        """Let the first member of a round count it as one step."""
        return self._members[:1] == [self.context.rank]

    def claim(self) -> Lease | Idle:
        context, words, strategy, rank = self.context, self._words, self.strategy, self.context.rank
        if strategy.missed(words, rank):
            # While a checkpoint is saved, `settle` does it; no round waits for this worker.
            if not context.paused():
                self._pass_over()
            return Idle.WAIT
        round_, stage = divmod(words["stages", rank], STAGES)
        if stage == 0:
            if not context.paused():
                words["ready", rank] = round_ + 1
            if words["begun"] == round_:
                self._decide(round_)
            if words["begun"] == round_:
                return Idle.DONE if words["stopped"] == round_ + 1 else Idle.WAIT
        lease = self.lease()
        if self._speeds is None or isinstance(lease, Idle):
            return lease
        first = strategy.ticket(context.arena, words, 0)
        return lease._replace(parts=self._speeds.parts(rank, first, context.ledger.n))

    def _decide(self, round_: int) -> None:
        """Begin a round, or end the run before it, as the first of the last round's members."""
        context, words, strategy = self.context, self._words, self.strategy
        ranks = strategy.members(words)[1]
        if context.rank != ranks[0] or (context.paused() and context.training()):
            return
        # A worker that died at a round's end did not wait for the others.
        behind = any(one < STAGES * round_ for one in strategy.each(words, "stages", ranks))
        tokens = strategy.count_tokens(context.arena)  # those before the round, unless `behind`
        if round_ >= self._limit or context.is_over(strategy.step_s(context.arena)):
            words["stopped"] = round_ + 1
            return
        ready = sum(one > round_ for one in strategy.each(words, "ready"))
        if behind or ready < strategy.batches_per_step():
            return
        words["version"] = version = context.arena.counters.load("version")
        words["opt_step"] = context.arena.workers.entry(1).opt_step
        if self._speeds is not None:
            words.set_real("lr", context.schedule(context.progress(), version))
            self._speeds.publish()
        else:
            words.set_real("lr", context.lr_at(round_, tokens, version))
        words["begun"] = round_ + 1

    def _pass_over(self) -> None:
        self._members = []
        self.strategy.pass_over(self.context.arena, self.context.ledger, self.context.rank)
        self.context.entry.ticket = -1

    def read(self) -> None:
        """Copy the parameters of the published version; the counter may be higher if one died."""
        self.context.entry.version_read = self._words["version"]
        self.context.copy_to_param_buffer()
        self._began_ns = monotonic_ns()

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        """Average the members' gradients, and apply a share, unless this one is too late."""
        context, words, strategy, rank = self.context, self._words, self.strategy, self.context.rank
        round_ = words["stages", rank] // STAGES
        if strategy.members(words)[0] == round_:
            put = partial(self._put, grads, size)
            strategy.run_stage(words, rank, STAGES * round_, put)
        context.wait_until(lambda: self._is_closed(round_))
        closed, self._members = strategy.members(words)
        if closed > round_ + 1 or rank not in self._members:
            self._pass_over()
            version = context.arena.counters.load("version")
            return WriteResult(applied=False, version=version, is_stale=True)
        context.seqlock.begin_update()  # before any worker of the round can apply its share
        end = partial(self._end, lease, size.tokens)
        self.run_stages(STAGES * round_ + 1, (self._average, end), self._members)
        context.seqlock.end_update()
        if self.counts_step():
            strategy.count_tokens(context.arena)
        finite = math.isfinite(mean.norm(context.arena))
        return WriteResult(applied=finite, version=context.entry.version_read + finite)

    def _is_closed(self, round_: int) -> bool:
        """Whether a round is closed; closes it if enough gradients are there."""
        words, strategy = self._words, self.strategy
        word = words["members"]
        if word >> MAX_WORKERS > round_:
            return True
        stages = strategy.each(words, "stages")
        arrived = [rank for rank, stage in enumerate(stages) if stage == STAGES * round_ + 1]
        if len(arrived) < strategy.batches_per_step():
            return False
        mask = sum(1 << rank for rank in arrived) if strategy.backup_workers else 0
        words.compare_exchange("members", word, (round_ + 1) << MAX_WORKERS | mask)
        return True

    # -- the stages of a round -------------------------------------------------------------------

    def _put(self, grads: Grads, size: BatchSize) -> None:
        """Write the worker's gradient and its weight (first stage)."""
        rank = self.context.rank
        if self._speeds is not None:
            self._speeds.note(rank, size.sequences, monotonic_ns() - self._began_ns)
        self._words["weight", rank] = size.labels
        self._mean.put(rank, grads, size.labels)

    def _average(self) -> None:
        """Compute this worker's share of the mean, and its sums of squares (second stage)."""
        self._mean.average(*self._share(), self._weights())

    def _end(self, lease: Lease, tokens: int) -> None:
        """Apply this worker's share of the update, and count it (last stage)."""
        words = self._words
        finite = math.isfinite(mean.norm(self.context.arena))
        version = self.context.entry.version_read + finite  # the same for every member
        opt_step = words["opt_step"] + finite  # which the state has seen, not each member
        tokens += words["tokens", self.context.rank]
        self.apply_once(lease, (opt_step, version, tokens, finite), self._apply)

    def _apply(self, record: StepRecord) -> None:
        lr, step = self._words.real("lr"), record.opt_step
        self._mean.apply(*self._share(), self._weights(), lr=lr, step=step)

    def _share(self) -> tuple[int, int]:
        return self._members.index(self.context.rank), len(self._members)

    def _weights(self) -> dict[int, int]:
        return {rank: self._words["weight", rank] for rank in self._members}


@dataclass(frozen=True, kw_only=True)
class Sync(SynchronousShares, Numbered):
    """Averaged gradients; with equal shares, reruns with the same workers are bitwise identical."""

    Worker: ClassVar[type[Any]] = SyncWorker
    name: ClassVar[str] = "sync"
    about: ClassVar[str] = "synchronous data parallelism: averages the workers' gradients"
    repeats: ClassVar[bool] = True
    averages: ClassVar[bool] = True
    one_state: ClassVar[bool] = True
    run_words: ClassVar[str] = "begun stopped done_before tokens_before lr version opt_step members"
    worker_words: ClassVar[str] = "weight ready seconds gradients sequences tokens"
    kept_words: ClassVar[tuple[str, ...]] = ()

    backup_workers: int = option(
        0,
        "workers that a synchronous step does not wait for; stale gradients are dropped, so "
        "text that takes long to compute counts less",
        low=0,
    )  # fmt: skip

    def constraints(self) -> Constraints:
        return (
            (self.backup_workers and self.shares == "speed", "backup_workers",
             "speed-weighted shares already let slow workers compute less; use one of the two"),
        )  # fmt: skip

    def run_constraints(self, config: TrainConfig) -> Constraints:
        rounds = config.determinism == "rounds"
        return (
            (rounds and self.shares != "equal", "determinism",
             "rounds, but speed-weighted shares follow from times that are measured; leave "
             "sync_shares out"),
            (rounds and self.backup_workers, "determinism",
             "rounds, but timing decides which gradients backup_workers drops; leave "
             "backup_workers out"),
        )  # fmt: skip

    def check_workers(self) -> None:
        most = self.workers - 1 if self.workers <= MAX_WORKERS else 0
        if self.backup_workers > most:
            raise ConfigError(
                f"backup_workers is {self.backup_workers}, and the run has {self.workers} "
                f"worker{'s' * (self.workers > 1)}; take at most {most}: a round waits for at "
                f"least one worker, and backup_workers is for runs of up to {MAX_WORKERS}"
            )

    def batches_per_step(self) -> int:
        return self.workers - self.backup_workers

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        tokens = self.workers * self.run.sequences_per_ticket * self.run.seq_len
        return {**super().segments(spec), **mean.segments(self.workers, spec, tokens)}

    def limit_steps(self, arena: Arena, ledger: Ledger, steps: int | None, done: int = 0) -> None:
        super().limit_steps(arena, ledger, steps, done)
        words, tokens = self.words(arena), arena.counters.load("tokens")
        words["done_before"], words["tokens_before"] = done, tokens

    # -- rounds ----------------------------------------------------------------------------------

    def steps(self, words: Words, rank: int) -> int:
        return words["stages", rank] // STAGES

    def store_counts(self, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
        """Store the counts after a member's round; the first member's are those of the run."""
        super().store_counts(arena, words, rank, record)
        words["tokens", rank] = record.tokens
        if rank == self.members(words)[1][0]:
            arena.counters.store("version", record.version)
            arena.workers.entry(1).opt_step = record.opt_step
        words["stages", rank] = STAGES * record.steps

    def count_tokens(self, arena: Arena) -> int:
        """Count the tokens of all updates of this call, and return them.

        Workers do not count their own: one that dies behind its last stage would leave them out.
        """
        words = self.words(arena)
        tokens: int = words["tokens_before"] + sum(self.each(words, "tokens"))
        arena.counters.store("tokens", tokens)
        return tokens

    def members(self, words: Words) -> tuple[int, list[int]]:
        """Return the number of closed rounds, and the members of the last; at first all."""
        closed, mask = divmod(words["members"], 1 << MAX_WORKERS)
        return closed, [rank for rank in range(self.workers) if not mask or mask >> rank & 1]

    def rounds_done(self, words: Words) -> int:
        """Return the number of rounds of this call that all members have ended."""
        closed, ranks = self.members(words)
        return closed - any(one < STAGES * closed for one in self.each(words, "stages", ranks))

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        words = self.words(arena)
        return words["done_before"] + self.rounds_done(words)

    def step_s(self, arena: Arena) -> float:
        """Return the step time of the slowest worker that a round waits for."""
        seconds = sorted(arena.workers.entry(rank + 1).step_s for rank in range(self.workers))
        return seconds[self.batches_per_step() - 1]

    def between_steps(self, arena: Arena) -> bool:
        words = self.words(arena)
        return words["begun"] <= self.rounds_done(words)

    def missed(self, words: Words, rank: int) -> bool:
        """Whether a rank was too late for a closed round."""
        closed, ranks = self.members(words)
        behind = closed - self.steps(words, rank)
        return behind > 1 or (behind == 1 and rank not in ranks)

    def pass_over(self, arena: Arena, ledger: Ledger, rank: int) -> None:
        """Mark a rank's tickets of missed rounds as done, and the rank as ready for the next one.

        Concurrency: called by the worker, or by another process while it is quiesced or dead.
        """
        words, owner = self.words(arena), arena.workers.entry(rank + 1).incarnation
        closed, begin = self.members(words)[0], self.ticket(arena, words, rank)
        end = begin + (closed - self.steps(words, rank)) * self.workers
        for number in range(begin, end, self.workers):
            ticket = ledger.locate(number)
            ledger.claim_exact(*ticket, owner)
            ledger.begin_apply(*ticket, owner)
            ledger.finish(*ticket, owner)
        words["stages", rank] = STAGES * closed

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """Skip the rounds that a worker missed; else a resumed run would repeat their tickets."""
        words = self.words(arena)
        for rank in range(self.workers):
            if self.missed(words, rank):
                self.pass_over(arena, ledger, rank)
        super().settle(arena, ledger)
        self.count_tokens(arena)

    def models_sent(self, arena: Arena, steps: int) -> int:
        return steps * 2 * (self.workers - 1)


BY_SPEED: Final = Sync(shares="speed")
