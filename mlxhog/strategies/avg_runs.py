"""Independent runs, averaged (Zinkevich et al. 2010, Parallelized SGD: SimuParallelSGD).

Every worker trains a copy of the parameters of its own on its own shard: of each epoch's shuffle it
takes every P-th batch. The copies are averaged in rank order once at the end, or also whenever each
has taken `average_every` steps (local SGD, Stich 2019). With a budget of steps or tokens reruns are
equal bit for bit, and one worker is the serial run.

The theory is for convex problems. Copies of a network may leave the common basin of their first
values; their average is then worse than each of them, which is why a run evaluates them, too.

An averaging begins when rank 0 has seen every worker at the mark, and has two stages: each worker
averages its share of the floats into the parameters, then takes the parameters as its copy. A stage
begins when all have ended the one before, and doing one twice is harmless, so whoever replaces a
dead worker goes on in the middle.

    segment                 dtype    meaning
    copies.1 .. copies.P    float32  each worker's own parameters
    copies.words            uint8    line 0: [0] averagings decided on; of all workers before this
                                     call: [1] steps, [2] tokens, [3] version without their updates
                                     line 1 + rank: [0] steps, [1] tokens, [2] updates, [3] ended
                                     stages of averagings
                                     line 1 + P + rank: journal (`words.py`)

Counts of a worker go on over resumes; the parameters are the average of the copies whenever all
workers hold still (`settle`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Float32, Grads
from mlxhog.data.ledger import Ledger, TicketState
from mlxhog.optim import gradients, updates
from mlxhog.strategies.strategy import Context, Idle, Lease, Outcome, Strategy
from mlxhog.strategies.words import LINE, Journal, StepRecord, Words

_DECIDED, _STEPS_BEFORE, _TOKENS_BEFORE, _VERSION_BASE = range(4)
_STEPS, _TOKENS, _UPDATES, _STAGES = range(4)


class AvgRuns(Strategy):
    """Independent runs, whose parameters are averaged."""

    numbered: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {
            **{name: ("float32", PARAMETER_COPY) for name in self.kept_segments()},
            "copies.words": ("uint8", LINE * (1 + 2 * self.workers)),
        }

    def worker(self, context: Context) -> AvgRunsWorker:
        """Prepare one worker."""
        return AvgRunsWorker(context)

    def kept_segments(self) -> tuple[str, ...]:
        """Each worker's own parameters."""
        return _copies(self.workers)

    def copies(self) -> tuple[str, ...]:
        """Each worker's own parameters, where they differ from the average."""
        return () if self.workers == 1 else self.kept_segments()

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Start every copy from the arena's parameters, or where it left off."""
        words, counters = Words(arena.segment("copies.words")), arena.counters
        if position is None:
            words.store(0, _VERSION_BASE, counters.load("version"))
            for name in self.kept_segments():
                updates.snapshot(arena.segment(name), arena.params)
            return
        counters.store("first_ticket", position["first_ticket"])
        for rank in range(self.workers):
            for word, name in ((_STEPS, "steps"), (_TOKENS, "tokens"), (_UPDATES, "updates")):
                words.store(1 + rank, word, position[name][rank])
        words.store(0, _STEPS_BEFORE, sum(position["steps"]))
        words.store(0, _TOKENS_BEFORE, sum(position["tokens"]))
        words.store(0, _VERSION_BASE, counters.load("version") - sum(position["updates"]))
        every = self.config.average_every
        same = position["every"] == every
        decided = position["averagings"] if same else max(position["steps"]) // (every or 1)
        words.store(0, _DECIDED, decided)
        for rank in range(self.workers):
            words.store(1 + rank, _STAGES, 2 * decided)

    def position(self, arena: Arena) -> dict[str, Any]:
        """How far each worker is."""
        words = Words(arena.segment("copies.words"))

        def of_all(word: int) -> list[int]:
            return [words.load(1 + rank, word) for rank in range(self.workers)]

        return {
            "first_ticket": arena.counters.load("first_ticket"),
            "steps": of_all(_STEPS),
            "tokens": of_all(_TOKENS),
            "updates": of_all(_UPDATES),
            "averagings": words.load(0, _DECIDED),
            "every": self.config.average_every,
        }

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End what dead workers have begun, and make the parameters the average."""
        words, workers = Words(arena.segment("copies.words")), self.workers
        for rank in range(workers):
            number = words.load(1 + rank, _STEPS) * workers + rank
            number += arena.counters.load("first_ticket")
            record = Journal(words, 1 + workers + rank).read()
            if record.ticket == number and ledger.state(*ledger.locate(number)) == TicketState.DONE:
                _take_in(arena, words, rank, record)
                words.store(1 + rank, _STEPS, words.load(1 + rank, _STEPS) + 1)
        decided = words.load(0, _DECIDED)
        for part in (_average_share, _take_average):
            for rank in range(workers):
                part(arena, words, rank, workers, decided)
        average(arena, workers, arena.params)
        arena.counters.store("version", _version(words, workers))
        super().settle(arena, ledger)

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Steps of this call, of all workers."""
        words = Words(arena.segment("copies.words"))
        return _steps(words, self.workers) - words.load(0, _STEPS_BEFORE)

    def between_steps(self, arena: Arena) -> bool:
        """Whether no averaging is under way, or about to begin."""
        words = Words(arena.segment("copies.words"))
        stage = 2 * words.load(0, _DECIDED)
        return all(words.load(1 + rank, _STAGES) == stage for rank in range(self.workers))

    def load(self, arena: Arena, out: Float32, *, training: bool) -> None:
        """Average the copies while they are trained; the parameters are old then."""
        if training:
            average(arena, self.workers, out)
        else:
            super().load(arena, out, training=False)

    def warning(self, average: float, copies: Sequence[float]) -> str | None:
        """Warn where averaging has made the model worse."""
        best = min(copies, default=average)
        if best >= average:
            return None
        return (
            f"the average of {len(copies)} runs has {average:.3f} bits per byte, the parameters of "
            f"worker {copies.index(best) + 1} alone {best:.3f}: averaging did not help; average "
            "more often with --average-every, or use hogwild or sync"
        )


def _copies(workers: int) -> tuple[str, ...]:
    """The segments of the workers' own parameters."""
    return tuple(f"copies.{rank + 1}" for rank in range(workers))


def average(
    arena: Arena, workers: int, out: Float32, begin: int = 0, end: int | None = None
) -> None:
    """Mean of the copies over floats [begin, end), added in rank order; the probe has no place.

    Concurrency: where workers are stepping, elements are of different ages.
    """
    last = arena.layout.probe.offset
    span = slice(min(begin, last), last if end is None else min(end, last))
    first, *others = (arena.segment(name)[span] for name in _copies(workers))
    mean = out[span]
    np.copyto(mean, first)
    for other in others:
        mean += other
    if others:
        mean *= np.float32(1.0 / workers)


def _take_in(arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
    """Make what a step was noted to leave what holds; doing it twice changes nothing."""
    arena.workers.entry(rank + 1).opt_step = record.opt_step
    words.store(1 + rank, _UPDATES, record.version)
    words.store(1 + rank, _TOKENS, record.tokens)


def _average_share(arena: Arena, words: Words, rank: int, workers: int, decided: int) -> None:
    """A worker's first stage of an averaging, unless it has ended it: its share of the floats."""
    if words.load(1 + rank, _STAGES) == 2 * decided - 2:
        floats = arena.params.size
        begin, end = floats * rank // workers, floats * (rank + 1) // workers
        average(arena, workers, arena.params, begin, end)
        words.store(1 + rank, _STAGES, 2 * decided - 1)


def _take_average(arena: Arena, words: Words, rank: int, workers: int, decided: int) -> None:
    """Its second stage, when all have ended the first: the average becomes its copy."""
    if words.load(1 + rank, _STAGES) == 2 * decided - 1:
        updates.snapshot(arena.segment(_copies(workers)[rank]), arena.params)
        words.store(1 + rank, _STAGES, 2 * decided)


def _steps(words: Words, workers: int) -> int:
    return sum(words.load(1 + rank, _STEPS) for rank in range(workers))


def _version(words: Words, workers: int) -> int:
    applied = sum(words.load(1 + rank, _UPDATES) for rank in range(workers))
    return words.load(0, _VERSION_BASE) + applied


class AvgRunsWorker:
    """One worker's own run, and its part in averagings."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        self.context = context
        arena = context.arena
        self._words = Words(arena.segment("copies.words"))
        self._line = 1 + context.rank
        self._journal = Journal(self._words, 1 + context.workers + context.rank)
        self._copy = arena.segment(f"copies.{context.slot}")
        # Nobody else writes this copy, so plain stores lose nothing.
        self._target = replace(
            context.target(context.slot), flat=self._copy, mode=updates.WRITE_MODES["racy"]
        )
        self._before = self._words.load(0, _STEPS_BEFORE)
        self._leased = False

    def counts_step(self) -> bool:
        """Every batch is a step."""
        return True

    # -- the worker's own run --------------------------------------------------------------------

    def _limit(self) -> int | None:
        """Steps of all workers, those before this call included."""
        limit = self.context.step_limit
        return None if limit is None else self._before + limit

    def claim(self) -> Lease | Idle:
        """Lease this worker's next ticket, after an averaging that is due."""
        context, workers = self.context, self.context.workers
        self._take_part()
        own, limit = self._words.load(self._line, _STEPS), self._limit()
        number = own * workers + context.rank
        if context.stopping() or context.used_up() or (limit is not None and number >= limit):
            return Idle.DONE
        if context.paused():
            return Idle.WAIT
        if self._is_due(own):
            if context.rank == 0 and self._all_reached(own):
                self._words.store(0, _DECIDED, self._averagings() + 1)
            return Idle.WAIT
        return self._lease(context.arena.counters.load("first_ticket") + number, own)

    def _lease(self, number: int, own: int) -> Lease | Idle:
        context = self.context
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased:
            if context.ledger.state(epoch, ticket) != TicketState.DONE:
                return Idle.WAIT  # a whole ring of tickets ahead of the oldest
            if self._journal.read().ticket != number:  # torn when the run before was killed
                self._words.store(self._line, _STEPS, own + 1)
                return Idle.WAIT
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def read(self) -> None:
        """Load the worker's own copy; nothing is ever stale."""
        context = self.context
        context.entry.version_read = context.arena.counters.load("version")
        updates.snapshot(context.backend.inbox, self._copy)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> Outcome:
        """Add the step to the worker's own copy."""
        context, words = self.context, self._words
        entry, ledger = context.entry, context.ledger
        norm = gradients.global_norm(grads)
        context.marks.begin_update()
        if self._leased:  # else the one before died with its step behind it
            record = self._record(lease, bool(np.isfinite(norm)), samples)
            self._journal.write(record)
            entry.phase = Phase.APPLY
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if record.applied:
                self._apply(grads, norm, record)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        record = self._journal.read()
        _take_in(context.arena, words, context.rank, record)
        entry.ticket = -1
        words.store(self._line, _STEPS, self._number(lease) + 1)
        version = _version(words, context.workers)
        context.arena.counters.store("version", version)
        context.marks.end_update()
        return Outcome(applied=record.applied, staleness=0, version=version)

    def _number(self, lease: Lease) -> int:
        """Which of the worker's own steps a ticket is, from 0."""
        first = self.context.arena.counters.load("first_ticket")
        return (lease.epoch * self.context.ledger.n + lease.ticket - first) // self.context.workers

    def _record(self, lease: Lease, finite: bool, samples: int) -> StepRecord:
        """What will hold once this step is done; `version` counts the worker's own updates."""
        context = self.context
        return StepRecord(
            opt_step=context.entry.opt_step + finite,
            version=self._words.load(self._line, _UPDATES) + finite,
            tokens=self._words.load(self._line, _TOKENS) + samples * context.config.seq_len,
            applied=finite,
            ticket=lease.epoch * context.ledger.n + lease.ticket,
        )

    def _apply(self, grads: Grads, norm: float, record: StepRecord) -> None:
        context = self.context
        context.optimizer.step(
            self._target,
            grads,
            lr=self._lr(),
            step=record.opt_step,
            seed=context.slot,
            grad_scale=context.grad_scale(norm),
        )

    def _lr(self) -> float:
        """Step size as if all workers were as far as this one."""
        context, words, workers = self.context, self._words, self.context.workers
        tokens = workers * words.load(self._line, _TOKENS) - words.load(0, _TOKENS_BEFORE)
        progress = context.budget.progress(
            steps=workers * words.load(self._line, _STEPS) - self._before,
            tokens=tokens,
            seconds=context.seconds(),
        )
        updates_of_all = workers * words.load(self._line, _UPDATES)
        return context.schedule(progress, words.load(0, _VERSION_BASE) + updates_of_all)

    # -- averagings ------------------------------------------------------------------------------

    def _is_due(self, own: int) -> bool:
        """Whether this worker stands at a mark that all others are going to reach, too."""
        every, workers, limit = (
            self.context.config.average_every,
            self.context.workers,
            self._limit(),
        )
        if every is None:
            return False
        mark = every * (self._averagings() + 1)
        return own == mark and (limit is None or mark * workers < limit)

    def _averagings(self) -> int:
        """Averagings this worker has taken part in; `decided` may be one ahead already."""
        return self._words.load(self._line, _STAGES) // 2

    def _all_reached(self, mark: int) -> bool:
        ranks = range(self.context.workers)
        return all(self._words.load(1 + rank, _STEPS) >= mark for rank in ranks)

    def _take_part(self) -> None:
        """Do what is left of an averaging that rank 0 has decided on."""
        context, words = self.context, self._words
        decided = words.load(0, _DECIDED)
        if words.load(self._line, _STAGES) == 2 * decided:
            return
        context.marks.begin_update()
        for stage, part in enumerate((_average_share, _take_average), start=1):
            part(context.arena, words, context.rank, context.workers, decided)
            self._wait_for(2 * decided - 2 + stage)
        context.marks.end_update()

    def _wait_for(self, stages: int) -> None:
        """Wait until every worker has ended so many; the supervisor replaces a dead one.

        The phase stays what it was: amid an averaging nobody holds still for a checkpoint.
        """
        entry, began_ns, nap_s = self.context.entry, monotonic_ns(), 0.0
        ranks: Sequence[int] = range(self.context.workers)
        while any(self._words.load(1 + rank, _STAGES) < stages for rank in ranks):
            entry.beat()
            time.sleep(nap_s)
            nap_s = min(1e-3, nap_s + 2e-5)
        entry.wait_ns += monotonic_ns() - began_ns
