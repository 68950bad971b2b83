"""Synchronous training: gradients averaged through the arena (Dekel et al. 2012, arXiv:1012.1367).

One round is one update of P batches. Every worker counts finished stages in a word of its own, so a
worker that replaces a dead one continues in the middle of the round, and no worker waits forever:

    stage 3R     compute a gradient for ticket R P + rank, write it to this worker's segment
    stage 3R+1   average this worker's share of the parameters over all gradient segments, in rank
                 order; store the sum of squares of each parameter's mean
    stage 3R+2   add the squares up in parameter order (so the norm does not depend on P), apply the
                 optimizer to this worker's share

A stage begins when every worker has finished the one before. Redoing a stage is harmless, except
an apply that was under way: the ledger then counts it as torn, and it is not repeated.
Rank 0 decides at the start of each round whether it is run, and publishes the decision with the
step size: the others follow, so all stop after the same round.

With `sync_shares=speed` the sequences of a round's P tickets are divided among the workers so that
all are done at about the same time. Rank 0 publishes the division with its decision, from the time
of each for a sequence in earlier rounds; the replacement of a dead worker computes the same
sequences. A worker still holds ticket R P + rank, which is done when the worker has ended the
round. It may get no sequence at all, and then has no gradient: the mean is that of the others.

In a run that may change its strategy a round begins when every worker is there. So no worker waits
within a round for one that evaluates, starts again or comes late, and the run may change meanwhile.

    segment            dtype    meaning
    grads.1 .. grads.P float32  gradients, laid out as the parameters
    grads.mean         float32  their mean
    tables.*                    those of tables, see `averaged_rows.py`
    sync.norm          float64  sum of squares of the mean, per parameter
    sync.words         uint8    words of 64 bits (`control_words.py`)

    line of sync.words  word  meaning
                     0     0  decision
                           1  steps that this call took with other strategies
                     1     0  lr, a float
                           1  version before the round
              2 + 2 rank   0  finished stages
                           1  steps its optimizer has taken with the round
              3 + 2 rank   0  sequences in its batch, the weight of its gradient
                           1  its seconds for one, a float; 0 is not measured yet
                           2  number of gradients in that mean
                           3  1 + the round that it is ready to begin, in an open run
              2 + 2 P   rank  sequences of the round that the rank computes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Grads
from mlxhog.config.strategy import InRounds
from mlxhog.optim import tables, updates
from mlxhog.optim.updates import Rows
from mlxhog.strategies import division
from mlxhog.strategies.averaged_rows import AveragedRows
from mlxhog.strategies.context import Context, Idle, Lease, WriteResult
from mlxhog.strategies.control_words import LINE, Words
from mlxhog.strategies.strategy import Strategy, all_reduce_bytes

GO, STOP, SWITCH = 1, 2, 3
WORDS_PER_LINE = LINE // 8


def sync_segments(workers: int, n_params: int) -> dict[str, tuple[str, int]]:
    """Arena segments of the table above."""
    copies = [f"grads.{rank + 1}" for rank in range(workers)] + ["grads.mean"]
    return {
        **{name: ("float32", PARAMETER_COPY) for name in copies},
        "sync.norm": ("float64", n_params),
        "sync.words": ("uint8", LINE * (2 + 2 * workers + -(-workers // WORDS_PER_LINE))),
    }


def round_s(arena: Arena, workers: int, needed: int) -> float:
    """Expected seconds of a round that waits for the fastest `needed` of its workers."""
    return sorted(arena.workers.entry(rank + 1).step_s for rank in range(workers))[needed - 1]


def is_over(words: NDArray[np.uint8], workers: int) -> bool:
    """Whether all workers have left the rounds for lock-free steps with moments of their own.

    Args:
        words: the segment `sync.words`.
        workers: of the run.
    """
    decided, code = divmod(Words(words).load(0, 0), 4)
    return code == SWITCH and _finished_stages(words, workers) == {3 * (decided - 1) + 1}


def between_rounds(words: NDArray[np.uint8], workers: int) -> bool:
    """Whether no worker has begun, or may begin, a round while the arena is to hold still."""
    decided, code = divmod(Words(words).load(0, 0), 4)
    stages = _finished_stages(words, workers)
    if code == SWITCH or len(stages) > 1:
        return is_over(words, workers)
    (stage,) = stages
    return stage % 3 == 0 and (code == STOP or decided <= stage // 3)


def rounds_done(words: NDArray[np.uint8], workers: int) -> int:
    """Rounds of this call that every worker has ended."""
    return min(_finished_stages(words, workers)) // 3


def _finished_stages(words: NDArray[np.uint8], workers: int) -> set[int]:
    return {Words(words).load(2 + 2 * rank, 0) for rank in range(workers)}


def pass_over(words: NDArray[np.uint8], workers: int) -> None:
    """Begin after the switch: in a resumed run whose workers already have their own moments."""
    for rank in range(workers):
        Words(words).store(2 + 2 * rank, 0, 1)
    Words(words).store(0, 0, 1 << 2 | SWITCH)


class Sync(Strategy):
    """Averaged gradients; with equal shares, reruns with the same workers are bit-identical."""

    numbered: ClassVar[bool] = True
    carries_tables: ClassVar[bool] = True

    def batches_per_step(self) -> int:
        """One of every worker."""
        return self.workers

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {**sync_segments(self.workers, n_params), **self.table_segments()}

    def worker(self, context: Context) -> SyncWorker:
        """Prepare one worker."""
        return SyncWorker(context)

    def limit_steps(self, arena: Arena, ledger: Ledger, steps: int | None, done: int = 0) -> None:
        """Store also the steps of other strategies."""
        super().limit_steps(arena, ledger, steps, done)
        Words(arena.segment("sync.words")).store(0, 1, done)

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Rounds that every worker has ended, and the steps of other strategies before them."""
        words = arena.segment("sync.words")
        return Words(words).load(0, 1) + rounds_done(words, self.workers)

    def step_s(self, arena: Arena) -> float:
        """That of the slowest worker that a round waits for."""
        return round_s(arena, self.workers, self.batches_per_step())

    def between_steps(self, arena: Arena) -> bool:
        """Whether no round is under way."""
        return between_rounds(arena.segment("sync.words"), self.workers)

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """Slot 1: workers apply one averaged gradient together, so its state is that of all."""
        return (1,)

    def network_bytes(self, arena: Arena, steps: int) -> int:
        """One all-reduce of the gradient in each round."""
        return steps * all_reduce_bytes(arena, self.workers)


class SyncWorker:
    """One worker's part of every round."""

    def __init__(self, context: Context, *, switch: Callable[[], bool] | None = None) -> None:
        """Prepare one worker.

        Args:
            context: this worker's view of the run.
            switch: asked by rank 0 before each round: whether synchronous training is over
                (`SyncThenHogwild`); never, when None.
        """
        self.context = context
        arena = context.arena
        self._words = Words(arena.segment("sync.words"))
        self._own = arena.segment(f"grads.{context.slot}")
        self._all = [arena.segment(f"grads.{rank + 1}") for rank in range(context.workers)]
        self._mean = arena.segment("grads.mean")
        self._norms = arena.segment("sync.norm")
        self._target = context.target(state_slot=1)
        self._rows = AveragedRows(arena, context.workers) if context.tables is not None else None
        self._names = list(arena.layout.slots)
        slots = arena.layout.slots.values()
        self._costs = [division.cost(slot, context.optimizer) for slot in slots]
        self._ranks: Sequence[int] = range(context.workers)
        self._needed = context.workers
        self._share = division.parameters(self._costs, context.workers)[context.rank]
        self._line = 2 + 2 * context.rank
        self._shares: division.SharesBySpeed | None = None
        if context.chosen(InRounds).shares == "speed":
            each = context.facts.sequences
            self._shares = division.SharesBySpeed(self._words, context.workers, each)
        self._began_ns = 0
        self._leased = False
        self._switch = switch
        self.switched = False

    # -- words shared by all workers -------------------------------------------------------------

    def _stages(self, rank: int) -> int:
        return self._words.load(2 + 2 * rank, 0)

    def _finish_stage(self, stage: int) -> None:
        self._words.store(self._line, 0, stage + 1)

    def _weight(self, rank: int) -> int:
        return self._words.load(3 + 2 * rank, 0)

    def _decision(self, round_: int) -> int:
        """The decision on a round: rank 0 makes it once, the others wait for it."""
        context = self.context
        word = self._words.load(0, 0)
        if word >> 2 == round_ + 1 and word & 3 != STOP:
            return word & 3
        if context.rank != self._ranks[0]:
            return word & 3 if word >> 2 == round_ + 1 else 0
        limit = context.step_limit
        if context.paused() and not context.stopping():
            return 0
        takes_s = round_s(context.arena, context.workers, self._needed)
        if context.stopping() or context.used_up(takes_s):
            code = STOP
        elif limit is not None and round_ >= limit:
            code = STOP
        elif self._switch is not None and self._switch():
            code = SWITCH
        else:
            code = GO
        if code != STOP:
            if any(self._stages(rank) < 3 * round_ for rank in self._ranks):
                return 0  # a worker that died at a round's end did not wait for the others
            if not self._all_are_there(round_):
                return 0
            self._publish(round_)
        self._words.store(0, 0, (round_ + 1) << 2 | code)
        return code

    def _all_are_there(self, round_: int) -> bool:
        """Whether every worker is ready for a round; a run that cannot change does not ask."""
        is_open, ranks = self.context.strategy.open, self._ranks
        return not is_open or all(self._words.load(3 + 2 * rank, 3) > round_ for rank in ranks)

    def _publish(self, round_: int) -> None:
        """Store the step size of a round, its version and the sequences of each rank."""
        context = self.context
        version = context.arena.counters.load("version")
        self._words.store_float(1, 0, context.schedule(self._progress(round_), version))
        self._words.store(1, 1, version)
        if self._shares is not None:
            self._shares.publish()

    def _progress(self, round_: int) -> float:
        """As `Context.progress`; with equal shares from the count of rank 0, so reruns agree.

        The others may not have counted their part of the last round yet.
        """
        context = self.context
        if self._shares is not None:
            return context.progress()
        tokens = context.workers * context.entry.tokens
        return context.budget.progress(steps=round_, tokens=tokens, seconds=context.seconds())

    def _step(self) -> int:
        """Number of this worker's optimizer step in the round, from 1."""
        return self._words.load(self._line, 1)

    def _lr(self) -> float:
        return self._words.load_float(1, 0)

    def _wait_for(self, stage: int) -> None:
        """Wait until every worker has finished a stage; the supervisor replaces a dead one.

        The phase is kept: during a round no worker holds still for a checkpoint.
        """
        entry = self.context.entry
        pause_s, began_ns = 0.0, monotonic_ns()
        while any(self._stages(rank) <= stage for rank in self._ranks):
            entry.beat()
            time.sleep(pause_s)
            pause_s = min(1e-3, pause_s + 2e-5)
        entry.wait_ns += monotonic_ns() - began_ns

    # -- one round -------------------------------------------------------------------------------

    def counts_step(self) -> bool:
        """A round is one step, counted by rank 0."""
        return self.context.rank == 0

    def claim(self) -> Lease | Idle:
        """Lease ticket R P + rank of round R."""
        context = self.context
        round_, stage = divmod(self._stages(context.rank), 3)
        if stage == 0 or self._switched_at(round_):
            if context.strategy.open and not context.paused():
                self._words.store(self._line + 1, 3, round_ + 1)
            code = self._decision(round_)
            if code == SWITCH:
                self._leave(3 * round_)
            if code != GO:
                return Idle.DONE if code == STOP else Idle.WAIT
        first = context.arena.counters.load("first_ticket")
        first += round_ * context.workers
        epoch, ticket = divmod(first + context.rank, context.ledger.n)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and context.ledger.state(epoch, ticket) != TicketState.DONE:
            return Idle.WAIT  # not one that its predecessor applied
        context.entry.ticket = ticket
        if self._shares is None:
            return Lease(epoch, ticket)
        return Lease(epoch, ticket, self._shares.parts(context.rank, first, context.ledger.n))

    def _switched_at(self, round_: int) -> bool:
        return self._words.load(0, 0) == (round_ + 1) << 2 | SWITCH

    def _leave(self, stage: int) -> None:
        """Take the shared moments as this worker's own, and wait until all have done so."""
        context = self.context
        if self._stages(context.rank) == stage:
            if context.slot != 1:
                own = context.target(context.slot).private
                for name, moments in self._target.private.items():
                    updates.snapshot(own[name], moments)
            self._finish_stage(stage)
        self._wait_for(stage)
        self.switched = True

    def read(self) -> None:
        """Plain snapshot: every worker of a round reads the same version.

        It is the version that rank 0 published: the counter may be higher when a replacement reads.
        """
        context = self.context
        context.entry.version_read = self._words.load(1, 1)
        context.copy_to_inbox()
        self._began_ns = monotonic_ns()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Average with the other workers' gradients, then apply this worker's share."""
        context = self.context
        start = self._stages(context.rank)
        base = start // 3 * 3
        if start == base:
            if self._shares is not None:
                self._shares.note(context.rank, samples, monotonic_ns() - self._began_ns)
            if samples:
                self._write_own(grads)
            self._words.store(self._line + 1, 0, samples)
            self._finish_stage(base)
        return self._end_round(lease, start)

    def _end_round(self, lease: Lease, start: int) -> WriteResult:
        """Average and apply with the workers of the round; `start` stages are finished."""
        context = self.context
        entry, ledger, counters = context.entry, context.ledger, context.arena.counters
        base = start // 3 * 3
        self._wait_for(base)  # also for a replacement: its predecessor may have been ahead
        context.marks.begin_update()  # before any worker of the round can apply its share
        if start <= base + 1:
            self._average()
            # Stored here, counted below: the replacement of a dead worker counts its step once.
            self._words.store(self._line, 1, entry.opt_step + 1)
            self._finish_stage(base + 1)
        self._wait_for(base + 1)
        norm = float(np.sqrt(self._norms.sum()))
        finite = bool(np.isfinite(norm))
        entry.phase = Phase.APPLY
        if self._leased:
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if finite:
                self._apply(norm)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        if finite:
            entry.opt_step = self._step()
        entry.ticket = -1
        version = entry.version_read + finite  # every worker of a round read the same one
        if context.rank == self._ranks[0]:
            counters.store("version", version)
        context.marks.end_update()
        self._finish_stage(base + 2)
        self._wait_for(base + 2)
        return WriteResult(applied=finite, staleness=0, version=version)

    def _write_own(self, grads: Grads) -> None:
        if self._rows is not None:
            self._rows.put(self.context.rank, tables.parted(grads, self.context.tables)[1])
        for name, slot in self.context.arena.layout.slots.items():
            grad = grads[name]
            own = self._own[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            if isinstance(grad, Rows):
                own.fill(0.0)
                np.add.at(own, grad.index, grad.values)
            else:
                np.copyto(own, grad)

    def _average(self) -> None:
        slots = self.context.arena.layout.slots
        ranks, shares = zip(*self._shares_of_ranks(), strict=True)
        all_grads = [self._all[rank] for rank in ranks]
        equal = len(set(shares)) == 1
        scale = np.float32(1.0 / len(ranks))
        for index in self._share:
            slot = slots[self._names[index]]
            span = slice(slot.offset, slot.offset + slot.size)
            mean = self._mean[span]
            np.multiply(all_grads[0][span], shares[0], out=mean)
            for other, share in zip(all_grads[1:], shares[1:], strict=True):
                mean += other[span] if equal else other[span] * share
            mean *= scale
            self._norms[index] = _native.sumsq_of_all([mean], self.context.threads)

    def _shares_of_ranks(self) -> list[tuple[int, np.float32]]:
        """Ranks with a gradient, and the weight of each, 1 on average."""
        weights = {rank: weight for rank in self._ranks if (weight := self._weight(rank))}
        total, count = sum(weights.values()), len(weights)
        return [(rank, np.float32(weight * count / total)) for rank, weight in weights.items()]

    def _apply_rows(self) -> None:
        """Apply the optimizer to this worker's share of the tables."""
        context, shares = self.context, self._shares_of_ranks()
        if self._rows is None or context.tables is None:
            return
        parts = [(rank, float(share) / len(shares)) for rank, share in shares]
        own = list(self._ranks).index(context.rank)
        rows = {
            name: self._rows.mean(k, parts)
            for k, name in enumerate(self._rows.names)
            if k % len(self._ranks) == own
        }
        context.tables.step(rows, lr=context.table_lr(self._lr()), seed=context.slot)

    def _apply(self, norm: float) -> None:
        self._apply_rows()
        context = self.context
        grads: Grads = {}
        for index in self._share:
            name = self._names[index]
            slot = context.arena.layout.slots[name]
            mean = self._mean[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            if slot.kind == "rows":  # an untouched row has an all-zero gradient
                rows = np.flatnonzero(mean.any(axis=1)).astype(np.int32)
                grads[name] = Rows(rows, np.ascontiguousarray(mean[rows]))
            else:
                grads[name] = mean
        context.optimizer.step(
            self._target,
            grads,
            lr=self._lr(),
            step=self._step(),
            seed=context.slot,
            grad_scale=context.grad_scale(norm),
        )
